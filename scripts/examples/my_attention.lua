--- An example of a custom attention inside a guidance method, to copy and change: smoothed energy guidance (Hong 2024,
--- arXiv 2408.00760), which guides away from a prediction whose attention is blurred.
---
---     build/crescent lipsync --guidance-method scripts/examples/my_attention.lua:seg=2,sigma=4 ...
--
-- A hook wraps each layer of the network (models/networks/unet3d_hook.lua); compute(x, { attend = ... }) replaces a layer's
-- attention. Here the queries [rows T C] of some layers are blurred over the image, whose T positions are a square.

local cr = require 'cr'
local nn = require 'cr.nn'

-- A matrix [n n] whose product blurs n positions; its rows add up to 1.
local function blur_matrix(n, sigma, like)
  local i = cr.arange(1, n)
  local weights = ((i:unsqueeze(2) - i):square() * (-0.5 / sigma ^ 2)):exp()
  return (weights / weights:sum(2, true)):to(like.dtype):to(like.device)
end

local function blurred(q, sigma)
  local rows, T, C = q:size(1), q:size(2), q:size(3)
  local side = math.floor(math.sqrt(T))
  local B = blur_matrix(side, sigma, q)
  return cr.einsum('ay,bx,nyxc->nabc', B, B, q:contiguous():view(rows, side, side, C)):view(rows, T, C)
end

-- One hook for each sigma and choice of layers: the network's steps are recorded by the hook's name.
local hooks = {}
local function hook_of(sigma, layers)
  local name = ('blurred %.17g %s'):format(sigma, layers)
  hooks[name] = hooks[name] or { name = name, layer = function(layer, x, compute)
    if layer.kind ~= 'attention' or not layer.name:find(layers, 1, true) then return compute(x) end
    return compute(x, { attend = function(q, k, v, heads) return nn.attention(blurred(q, sigma), k, v, { heads = heads }) end })
  end }
  return hooks[name]
end

return {
  help = 'smoothed energy guidance: an example to copy',
  options = {
    { 'seg', 3, 'weight of the difference to the prediction with blurred attention', min = 0 },
    { 'sigma', 4, 'standard deviation of the blur, in positions', above = 0 },
    { 'layers', 'mid_block', 'blur the self-attentions whose name contains this' },
  },
  applies = function() return true end, -- with --guidance 1, too
  combine = function(self, uncond, cond, step)
    local o = self.options
    local smooth = step:predict { hook = hook_of(o.sigma, o.layers) }
    if not uncond then return cr.lincomb({ cond, smooth }, { 1 + o.seg, -o.seg }) end
    return cr.lincomb({ uncond, cond, smooth }, { 1 - self.scale, self.scale + o.seg, -o.seg })
  end,
}
