--- A person whose mouth is generated in a film: what belongs to that person's windows alone. It is the source of
--- clips (Clip.source).
--
-- Each person has a random generator of their own with the same seed. It is used as if the person were alone in the
-- film: first for the noise, then for each window's conditioning. So nobody's pixels depend on the other people.

local cr = require 'cr'
local colour = require 'models.latentsync.colour'

local M = {}

--- @class Speaker
--- @field who string an identity that stays the same if the film is opened again
--- @field film Windows
--- @field part Part the person's part (models/latentsync/cast.lua)
--- @field voice Voice
--- @field tokens AudioTokens the voice's tokens
--- @field generator any
--- @field noise Tensor [1 1 h w 4], in host memory
--- @field colour Colour? colour matching
--- @field mask Tensor f32 [S S 1], the film's mask
--- @field paste string 'region' or 'reference'
--- @field measure function
local Speaker = {}
Speaker.__index = Speaker

--- @param film Windows
--- @param part Part
--- @param voice Voice
--- @param o table {seed, rng, paste, match_colour} from the settings, and colours
--- @return Speaker
function M.new(film, part, voice, o)
  local model, who = film.model, ('%d %d'):format(part.voice, part.person or 0)
  local matched = o.match_colour and (o.colours and o.colours[who] or colour.new(film.mask, o.colours and 'cpu' or model.device,
    o.colours ~= nil)) or nil
  if o.colours then o.colours[who] = matched end
  local self = setmetatable({
    who = who, film = film, part = part, voice = voice, tokens = voice.tokens, mask = film.mask, paste = o.paste, measure = film.measure,
    generator = cr.generator(o.seed, o.rng), colour = matched,
  }, Speaker)
  self.noise = cr.keep(cr.scope(function() return model:draw(1, self.generator):unsqueeze(1):to 'cpu' end))
  return self
end

--- The frames with what is specific to this person: the place of the face and the weight of the generated mouth.
--- @param items FrameItem[]
--- @param first integer index of the first frame in the result, from 1
--- @return FrameItem[]
function Speaker:items(items, first)
  local list, silence = {}, self.film.keeps and self.voice.silence
  for i, item in ipairs(items) do
    list[i] = {
      frame = item.frame, index = item.index, seconds = item.seconds, turned = item.turned, made = item.made,
      matrix = self.part.place:matrix(item.index), share = silence and silence:share(first - 1 + (item.made or i)) or nil,
    }
  end
  return list
end

--- The index of a clip's window in the film, from 1, and the number of windows.
--- @param clip Clip
function Speaker:index(clip) return self.film:index(clip) end
function Speaker:count() return self.film:count() end

--- The order of speakers in reports: by voice, then by person number.
--- @param other Speaker
function Speaker:comes_before(other)
  local a, b = self.part, other.part
  if a.voice ~= b.voice then return a.voice < b.voice end
  return (a.person or 0) < (b.person or 0)
end

function Speaker:free()
  self.noise:free()
  if self.colour then self.colour:free() end
end

return M
