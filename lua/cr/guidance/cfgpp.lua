--- CFG++ (Chung et al. 2024, arXiv 2406.08070): the predicted data is guided, but the sample is renoised with the
--- unconditional noise.
--
-- A step goes from x = alpha D + sigma N to alpha' D + sigma' N, with D guided and N unconditional. A scheduler
-- derives D and N from its sample and its prediction. To get these two, it is given the unconditional prediction and
-- a sample that is moved by alpha times the update of the data.

local cr = require 'cr'

return {
  help = 'CFG++: guided data, unconditional noise; the weight is the paper\'s lambda, 0 to 1 (Chung et al. 2024)',
  moves = true,
  applies = function() return true end,
  halves = function() return true end,
  combine = function(self, uncond, cond, step)
    local _, data_of_m = step:data_weights()
    local noise_of_x, noise_of_m = step:noise_weights()
    -- x moves by `by` (cond - uncond), and the prediction is changed so that the noise stays the same.
    local by = step.alpha * data_of_m * self.scale
    local m = -noise_of_x / noise_of_m * by
    return cr.lincomb({ uncond, cond }, { 1 - m, m }), cr.lincomb({ step.x, cond, uncond }, { 1, by, -by })
  end,
}
