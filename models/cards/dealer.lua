--- Deals pieces of work, such as windows or frames, to makers as these come free, and gives what they made in order.
--
-- A maker is a device with a model of its own, and a task: it takes the next piece when all of its last one has been given to
-- its card. One whose card fails or has no memory left is left out, with a line, and the others do its pieces.
--
-- Invariants: pieces are collected in the order in which they were dealt; at most ROOM a maker are dealt and not
-- collected, however many come; a piece is made of what it was dealt with, however often it is begun.

local cr = require 'cr'

local M = {}

local ROOM = 2

--- @class Maker
--- @field device string
--- @field load fun(): any called in the maker's task, before its first piece
--- @field model any what load gave
--- @field made integer how many pieces it has made that are collected
--- @field out string? why it was left out

--- @class Ticket a piece that was dealt
--- @field piece any
--- @field number integer from 1
--- @field maker Maker? who makes it, or has made it

--- @class Dealer
local Dealer = {}
Dealer.__index = Dealer

--- @param o table {makers = Maker[], what = what pieces are called, for people, make = function(maker, piece) -> what it makes of
---   a piece, once but a little of it waits for its card; survived = function(err, maker) -> whether an error is not its card's
---   (cr.cuda.survived), note = function(text)}
--- @return Dealer
function M.new(o)
  local several = #o.makers > 1
  for _, maker in ipairs(o.makers) do maker.made = 0 end
  return setmetatable({
    makers = o.makers, what = o.what, make = o.make, note = o.note, several = several, dealt = 0,
    survived = o.survived or function(err, maker) return cr.cuda.survived(err, maker.device) end,
    order = cr.channel(several and ROOM * #o.makers - 1 or ROOM), -- one is in the hands of who collects
    waiting = {},               -- tickets that nobody has begun, by number
    count = cr.channel(2 ^ 30), -- of those
  }, Dealer)
end

-- Lets a ticket be made, before those that were dealt after it.
local function await_maker(self, ticket)
  local at = #self.waiting + 1
  while at > 1 and self.waiting[at - 1].number > ticket.number do at = at - 1 end
  table.insert(self.waiting, at, ticket)
  self.count:put(true)
end

--- Deals the next piece, once there is room for it.
--- @param piece any
--- @param alone boolean? nobody has to make anything of it
function Dealer:deal(piece, alone)
  self.dealt = self.dealt + 1
  local ticket = { piece = piece, number = self.dealt, ready = cr.channel(1) }
  self.order:put(ticket)
  if alone then ticket.ready:put {} else await_maker(self, ticket) end
end

--- Says that no more are dealt.
function Dealer:ended() self.order:close() end

-- Goes on without a maker; raises the error if it is not the card's, or if nobody is left.
local function leave_out(self, maker, err)
  if not self.several or self.survived(err, maker) then error(err, 0) end
  if maker.out then return end
  maker.out, maker.model = tostring(err), nil
  local left, reasons = {}, {}
  for _, other in ipairs(self.makers) do
    if other.out then
      reasons[#reasons + 1] = ('%s: %s'):format(other.device, other.out)
    else
      left[#left + 1] = other.device
    end
  end
  if #left == 0 then error('no card is left: ' .. table.concat(reasons, '; '), 0) end
  self.note(('%s is left out, and %s make%s its %s: %s'):format(maker.device, table.concat(left, ' and '), #left == 1 and 's' or '',
    self.what, maker.out))
  collectgarbage() -- its model
  collectgarbage()
end

--- A maker's task: ends when all pieces are collected, or when it is left out.
--- @param maker Maker
function Dealer:work(maker)
  local ticket
  local ok, err = pcall(function()
    maker.model = maker.model or maker.load()
    while true do
      local there = self.count:get()
      if there and maker.out then self.count:put(true) end -- for another
      if not there or maker.out then return end
      ticket = table.remove(self.waiting, 1)
      ticket.maker = maker
      local made, done = self.make(maker, ticket.piece), ticket
      ticket = nil
      done.ready:put(made)
    end
  end)
  if ok then return end
  leave_out(self, maker, err)
  if ticket then await_maker(self, ticket) end
end

--- The next ticket in order; nil after the last.
--- @return Ticket?
function Dealer:next() return self.order:get() end

--- What fn makes of what was made of a ticket's piece: again by another maker if its card fails meanwhile.
--- @param ticket Ticket
--- @param fn fun(made: table, ticket: Ticket): any
function Dealer:collect(ticket, fn)
  while true do
    local ok, result = pcall(fn, ticket.ready:get(), ticket)
    if ok then
      if ticket.maker then ticket.maker.made = ticket.maker.made + 1 end
      return result
    end
    if not ticket.maker then error(result, 0) end
    leave_out(self, ticket.maker, result)
    await_maker(self, ticket)
  end
end

--- Says that everything is collected: the makers' tasks end.
function Dealer:close() self.count:close() end

return M
