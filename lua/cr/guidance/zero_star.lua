--- CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): the unconditional half is first scaled to where it is
--- nearest to the conditional one, and the first steps' predictions may be zero.
--
-- The paper's zero steps are of flow matching, whose velocity at pure noise tells little; of networks that
-- predict noise there is nothing to gain, so there are none unless they are asked for.

local cr = require 'cr'

-- Over all but the batch.
local function sum(x)
  local dims = {}
  for d = 2, x:dim() do dims[d - 1] = d end
  return x:sum(dims, true)
end

return {
  help = 'CFG-Zero*: the unconditional half scaled to fit the other (Fan et al. 2025)',
  options = { { 'zero_steps', 0, 'steps at the beginning whose prediction is zero', integer = true, min = 0 } },
  combine = function(self, uncond, cond, step)
    if step.index <= self.options.zero_steps then return cond * 0 end
    local u, c = uncond:to 'f32', cond:to 'f32'
    local fit = sum(u * c) / (sum(u:square()) + 1e-8)
    return cr.lincomb({ u * fit, c }, { 1 - self.scale, self.scale }):to(cond.dtype)
  end,
}
