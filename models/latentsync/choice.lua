--- Selects the people whose mouths are generated: the setting `face`.
--
--     local choice = require 'models.latentsync.choice'.new 'largest'
--     choice:pick(seen)          -- what people.lua saw in a frame -> the numbers of the selected people in it
--
-- `largest`, `left` and `right` select one of the people who are visible when a shot begins, and keep this person
-- until the shot ends. A number, `first` and a place `X,Y` select one person for the whole video. `speaking` selects
-- the person who speaks, which must be known before (models/latentsync/census.lua).

local M = {}

--- @class crescent.choice
--- @field text string the text that was given
--- @field number integer? the person that is selected now
local Choice = {}
Choice.__index = Choice

local function area(p) return (p.box[3] - p.box[1]) * (p.box[4] - p.box[2]) end
local function middle(p) return (p.box[1] + p.box[3]) / 2 end

-- A person's score under each choice; the highest score wins when a shot begins.
local BY_SHOT = {
  largest = area,
  left = function(p) return -middle(p) end,
  right = middle,
}

local function most(list, value)
  local best
  for _, p in ipairs(list) do
    if not best or value(p) > value(best) then best = p end
  end
  return best and best.number
end

-- 'X,Y' as two numbers.
local function place_of(text)
  local x, y = text:match '^(%d+%.?%d*),(%d+%.?%d*)$'
  return tonumber(x), tonumber(y)
end

--- The valid choices, as the end of a sentence.
M.wanted = 'largest, first, left, right, speaking, all, the number of a person as in 2, a place as in 640,360'

--- Whether a text is a valid choice.
--- @param text any
--- @return boolean
function M.holds(text)
  return type(text) == 'string' and (BY_SHOT[text] ~= nil or text == 'first' or text == 'all' or text == 'speaking' or
    text:find '^[1-9]%d?%d?%d?$' ~= nil or place_of(text) ~= nil)
end

--- Creates a choice.
--- @param text string 'largest', 'first', 'left', 'right', 'speaking', 'all', a number, or 'X,Y' in pixels of the frame
--- @return crescent.choice
function M.new(text)
  if not M.holds(text) then error(('a face must be %s, not %s'):format(M.wanted, tostring(text)), 2) end
  local self = setmetatable({ text = text, by_shot = BY_SHOT[text], all = text == 'all' }, Choice)
  self.x, self.y = place_of(text)
  self.number = text == 'first' and 1 or tonumber(text)
  self.turns = text == 'speaking' and {} or nil
  return self
end

--- Tells the choice `speaking` who speaks when.
--- @param turns {first: integer, number: integer}[] the frames (from 0, at 25 per second) at which a person begins to speak
function Choice:speak(turns) self.turns = turns end

-- The person who speaks; before the first words, the person who says them.
local function speaker(turns, seconds)
  local number
  for i, turn in ipairs(turns) do
    if i == 1 or seconds >= turn.first / 25 - 1e-6 then number = turn.number end
  end
  return number
end

-- The person at the given place.
function Choice:at_place(list)
  for _, p in ipairs(list) do
    local b = p.box
    if self.x >= b[1] and self.x <= b[3] and self.y >= b[2] and self.y <= b[4] then return p.number end
  end
end

--- The people who are selected in a frame.
--- @param seen crescent.people.seen
--- @return integer[] person numbers, ascending
function Choice:pick(seen)
  local numbers = {}
  if self.all then
    for i, p in ipairs(seen.people) do numbers[i] = p.number end
    return numbers
  end
  if self.turns then self.number = speaker(self.turns, seen.seconds) end
  if self.by_shot and seen.cut then self.number = nil end
  if self.by_shot or self.x then self.number = seen.renamed[self.number] or self.number end
  if not self.number then
    self.number = self.by_shot and most(seen.people, self.by_shot) or self.x and self:at_place(seen.people) or nil
  end
  for _, p in ipairs(seen.people) do
    if p.number == self.number then numbers[1] = p.number end
  end
  return numbers
end

return M
