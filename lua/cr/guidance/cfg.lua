--- Classifier-free guidance with the same weight at all steps (Ho and Salimans 2022, arXiv 2207.12598).

local cr = require 'cr'

return {
  help = 'classifier-free guidance: uncond + scale (cond - uncond) (Ho and Salimans 2022)',
  combine = function(self, uncond, cond) return cr.lincomb({ uncond, cond }, { 1 - self.scale, self.scale }) end,
}
