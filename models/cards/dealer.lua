--- Deals pieces of work, such as windows or frames, to makers when these are free, and returns the results in order.
--
-- A maker is a device with a model and a task of its own. It takes the next piece when all work for its last one is
-- queued on its GPU. A maker whose GPU fails or runs out of memory is dropped with a line in the log, and the others
-- take over its pieces.
--
-- Invariants: results are collected in the order in which the pieces were dealt. Per maker at most ROOM pieces are
-- dealt and not yet collected, whatever their number. A restarted piece gets the same input as before.

local cr = require 'cr'

local M = {}

local ROOM = 2

--- @class Maker
--- @field device string
--- @field load fun(): any is called before the maker's first piece
--- @field model any the result of load
--- @field made integer number of its pieces that were collected
--- @field out string? the reason why it was dropped

--- @class Ticket a piece that was dealt
--- @field piece any
--- @field number integer from 1
--- @field maker Maker? the maker that works on it or has finished it

--- @class Dealer
local Dealer = {}
Dealer.__index = Dealer

--- @param o table {makers = Maker[], what = the pieces' name in messages, make = function(maker, piece) -> the result for a piece,
---   returned when only little of it still waits for its GPU; survived = function(err, maker) -> whether the GPU can still be used
---   after an error (cr.cuda.survived), note = function(text)}
--- @return Dealer
function M.new(o)
  local several = #o.makers > 1
  for _, maker in ipairs(o.makers) do maker.made = 0 end
  return setmetatable({
    makers = o.makers, what = o.what, make = o.make, note = o.note, several = several, dealt = 0,
    survived = o.survived or function(err, maker) return cr.cuda.survived(err, maker.device) end,
    order = cr.channel(several and ROOM * #o.makers - 1 or ROOM), -- one more is held by the collector
    waiting = {}, -- tickets that no maker has taken, by number
    count = cr.channel(2 ^ 30), -- the number of waiting tickets
  }, Dealer)
end

-- Queues a ticket for the makers, before tickets that were dealt later.
local function await_maker(self, ticket)
  local at = #self.waiting + 1
  while at > 1 and self.waiting[at - 1].number > ticket.number do at = at - 1 end
  table.insert(self.waiting, at, ticket)
  self.count:put(true)
end

--- Deals the next piece, once there is room for it.
--- @param piece any
--- @param alone boolean? the piece needs no maker
function Dealer:deal(piece, alone)
  self.dealt = self.dealt + 1
  local ticket = { piece = piece, number = self.dealt, ready = cr.channel(1) }
  self.order:put(ticket)
  if alone then ticket.ready:put {} else await_maker(self, ticket) end
end

--- Declares that no more pieces follow.
function Dealer:ended() self.order:close() end

-- Continues without a maker. Raises the error if it is not the GPU's fault, or if no maker is left.
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
  if #left == 0 then error('no GPU is left: ' .. table.concat(reasons, '; '), 0) end
  self.note(('%s is dropped; %s take%s over its %s: %s'):format(maker.device, table.concat(left, ' and '), #left == 1 and 's' or '',
    self.what, maker.out))
  collectgarbage() -- frees its model
  collectgarbage()
end

--- Loads a maker's model, if it is not loaded: not before it is needed, so that other makers begin earlier.
--- @param maker Maker
function M.load(maker) maker.model = maker.model or maker.load() end

--- A maker's task. It ends when all pieces are collected, or when the maker is dropped.
--- @param maker Maker
function Dealer:work(maker)
  local ticket
  local ok, err = pcall(function()
    while true do
      local there = self.count:get()
      if there and maker.out then self.count:put(true) end -- for another maker
      if not there or maker.out then return end
      ticket = table.remove(self.waiting, 1)
      ticket.maker = maker
      M.load(maker)
      local made, done = self.make(maker, ticket.piece), ticket
      ticket = nil
      done.ready:put(made)
    end
  end)
  if ok then return end
  leave_out(self, maker, err)
  if ticket then await_maker(self, ticket) end
end

--- Returns the next ticket in order; nil after the last.
--- @return Ticket?
function Dealer:next() return self.order:get() end

--- Calls fn with the result of a ticket's piece. If its GPU fails meanwhile, another maker makes the piece again.
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

--- Declares that everything is collected, which ends the makers' tasks.
function Dealer:close() self.count:close() end

return M
