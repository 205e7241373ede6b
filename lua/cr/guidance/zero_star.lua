--- CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): the unconditional half is first scaled to minimize its distance to
--- the conditional half, and the first steps' predictions may be set to zero.
--
-- The paper zeroes the first steps of flow matching, where the velocity at pure noise is unreliable. Networks that
-- predict noise gain nothing from it, so the default is 0 such steps.

local cr = require 'cr'

-- The sum over all dimensions but the batch.
local function sum(x)
  local dims = {}
  for d = 2, x:dim() do dims[d - 1] = d end
  return x:sum(dims, true)
end

return {
  help = 'CFG-Zero*: the unconditional half scaled to fit the other (Fan et al. 2025)',
  options = { { 'zero_steps', 0, 'number of first steps whose prediction is set to zero', integer = true, min = 0 } },
  combine = function(self, uncond, cond, step)
    if step.index <= self.options.zero_steps then return cond * 0 end
    local u, c = uncond:to 'f32', cond:to 'f32'
    local fit = sum(u * c) / (sum(u:square()) + 1e-8)
    return cr.lincomb({ u * fit, c }, { 1 - self.scale, self.scale }):to(cond.dtype)
  end,
}
