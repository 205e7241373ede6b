--- One who is made in a film: what their windows have of their own. Where a clip comes from (Clip.source).
--
-- Everybody has random numbers of their own from the same seed, drawn as in a film in which they alone are made: first
-- the noise, then for each window what model:condition draws. Nobody's pixels therefore depend on who else is made.

local cr = require 'cr'
local colour = require 'models.latentsync.colour'

local M = {}

--- @class Speaker
--- @field who string the same of one person in a film that is opened anew
--- @field film Windows
--- @field part Part whose place it is (models/latentsync/cast.lua)
--- @field voice Voice
--- @field tokens AudioTokens of the voice
--- @field generator any
--- @field noise Tensor [1 1 h w 4], in the main memory
--- @field colour Colour? matches the colour of what is made
--- @field mask Tensor f32 [S S 1], the film's
--- @field paste string 'region' or 'reference'
--- @field measure function
local Speaker = {}
Speaker.__index = Speaker

--- @param film Windows
--- @param part Part
--- @param voice Voice
--- @param o table {seed, rng, paste, match_colour} of the settings, colours
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

--- Frames as this one appears in them: items of their own, with the place of the face and how much of the mouth is new.
--- @param items FrameItem[]
--- @param first integer number of the first in the result, from 1
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

--- Which window of the film a clip is, from 1, and how many there are.
--- @param clip Clip
function Speaker:index(clip) return self.film:index(clip) end
function Speaker:count() return self.film:count() end

--- Whether this one is told of before another: by voice, of one voice by number.
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
