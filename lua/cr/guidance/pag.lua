--- Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377): moves the prediction away from a perturbed one,
--- for which the self-attention map of some layers is the identity. It costs one more run of the conditional half,
--- and works with classifier-free guidance or without it (weight 1).

local cr = require 'cr'

-- Hooks by the name of the layers. Each is made once, because recorded steps are kept by hook.
local hooks = {}

return {
  help = 'perturbed-attention guidance, with or without classifier-free guidance (Ahn et al. 2024)',
  options = {
    { 'pag', 3, 'weight of the difference to the perturbed prediction', min = 0 },
    { 'layers', 'mid_block', 'part of the names of the spatial self-attention layers to perturb' },
  },
  applies = function() return true end,
  combine = function(self, uncond, cond, step)
    local o = self.options
    if o.pag == 0 then return uncond and cr.lincomb({ uncond, cond }, { 1 - self.scale, self.scale }) or cond end
    hooks[o.layers] = hooks[o.layers] or {
      name = 'pag ' .. o.layers,
      layer = function(layer, x, compute)
        return compute(x, { identity = layer.kind == 'attention' and layer.name:find(o.layers, 1, true) ~= nil })
      end,
    }
    local perturbed = step:predict { hook = hooks[o.layers] }
    if not uncond then return cr.lincomb({ cond, perturbed }, { 1 + o.pag, -o.pag }) end
    return cr.lincomb({ uncond, cond, perturbed }, { 1 - self.scale, self.scale + o.pag, -o.pag })
  end,
}
