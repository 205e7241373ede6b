--- The cast of a film: for each voice, the person that its choice (models/latentsync/choice.lua) selects, and
--- where their faces are.
--
-- A choice that selects one person at a time has one part, whoever fills it. A choice that selects everybody
-- has one part per person, which begins when the person is first seen. All parts are settled frame by frame,
-- together.

local errors = require 'cr.errors'
local places = require 'models.latentsync.place'

local M = {}

--- @class Part
--- @field voice integer index of the voice that it speaks with
--- @field person integer? the person, if its choice selects everybody
--- @field place Place
--- @field number integer? the person last seen in it; nil if nobody was yet

--- @class Cast
--- @field parts Part[] in the order in which they are pasted
local Cast = {}
Cast.__index = Cast

local function add(self, voice, person)
  local part = { voice = voice, person = person, place = places.new(self.o, self.settled, self.pushed - self.settled) }
  self.parts[#self.parts + 1] = part
  return part
end

--- @param o table {video = for sentences, choices = a list of {text, all}, size, smooth, hold, cut: see models/latentsync/place.lua}
--- @return Cast
function M.new(o)
  local self = setmetatable({ o = o, parts = {}, pushed = 0, settled = 0 }, Cast)
  for k, choice in ipairs(o.choices) do
    if not choice.all then add(self, k) end
  end
  return self
end

local function part_of(self, voice, person)
  for _, part in ipairs(self.parts) do
    if part.voice == voice and (not part.person or part.person == person) then return part end
  end
  return add(self, voice, person)
end

-- Which part each selected person plays, by person number. One person cannot have two voices.
local function playing(self, picks, seconds)
  local parts = {}
  for voice, numbers in ipairs(picks) do
    for _, number in ipairs(numbers) do
      local other, part = parts[number], part_of(self, voice, number)
      if other then
        local choices = self.o.choices
        errors.fail(('%s: at %.2f s %s and %s are the same person (%d), who has two voices: choose people by number')
          :format(self.o.video, seconds, choices[other.voice].text, choices[voice].text, number))
      end
      parts[number] = part
    end
  end
  return parts
end

--- Takes the next frame.
--- @param seen crescent.people.seen
--- @param seconds number the frame's time, for messages
--- @return boolean whether a selected person is in it
function Cast:push(seen, seconds)
  local renamed = seen.renamed or {}
  local by_number, points_of, number_of = playing(self, seen.picks, seconds), {}, {}
  for _, person in ipairs(seen.people) do
    local part = by_number[person.number]
    if part then points_of[part], number_of[part] = person.points, person.number end
  end
  for _, part in ipairs(self.parts) do
    local number, before = number_of[part], renamed[part.number] or part.number
    local other = number ~= nil and before ~= nil and number ~= before
    part.place:push(points_of[part], seen.cut or other, other and not seen.cut)
    part.number = number or before
  end
  self.pushed = self.pushed + 1
  self:settle()
  return next(points_of) ~= nil
end

--- Counts the frames that are settled for all parts; without parts, all frames are settled.
function Cast:settle()
  local least = self.pushed
  for _, part in ipairs(self.parts) do least = math.min(least, part.place.settled) end
  self.settled = least
end

--- The choices that never selected anybody.
--- @return string[] their texts
function Cast:absent()
  local played, list = {}, {}
  for _, part in ipairs(self.parts) do played[part.voice] = played[part.voice] or part.number ~= nil end
  for voice, choice in ipairs(self.o.choices) do
    if not played[voice] then list[#list + 1] = choice.text end
  end
  return list
end

--- Settles the remaining frames, at the end of the video.
function Cast:flush()
  for _, part in ipairs(self.parts) do part.place:flush() end
  self:settle()
end

return M
