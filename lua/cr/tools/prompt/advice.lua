--- Advice after an error at the prompt, for people who write Python: how Lua writes it, and which method was meant.

local errors = require 'cr.errors'

local M = {}

local MODULES = "cr, nn, media and others are there without import; other modules: name = require 'cr.json'"
local NUMPY = 'write cr.linspace(0, 1, 5): ? np.linspace says what a name is here'

-- Python's forms in a text that Lua cannot compile, and Lua's.
local FORMS = {
  { '^%s*import%s', MODULES }, { '^%s*from%s+[%w_.]+%s+import', MODULES },
  { '^%s*def%s', 'a function is written: function f(x) return x * 2 end' },
  { '%f[%w_]lambda%f[^%w_]', 'a function is written: function(x) return x * 2 end' },
  { '^%s*for%s.-%sin%s+range', 'a loop is written: for i = 1, 10 do print(i) end' },
  { '%*%*', 'a power is written x ^ 2' }, { '!=', 'unequal is written a ~= b' },
  { '[-+*/]=', 'write x = x + 1, or x:add_(1) in place' },
  { '%[[^%]]*:[^%]]*%]', 'a part of a tensor is written x[{ { 1, 3 }, {} }]: rows 1 to 3, all columns' },
  { '%[[^%]]+%sfor%s.-%sin%s', 'there are no comprehensions: use operations on tensors, or a loop' },
  { '%[[^%]{}]*,[^%]]*%]', 'an element of a tensor is written x[{ 1, 2 }]' }, { '%w%s*@%s*%w', 'a matrix product is written a:matmul(b)' },
  { '%([^{}()]*%f[%w_][%a_][%w_]*%s*=[^=]', 'arguments have places and no names: x:sum(1); options are a table' },
}

-- Python's globals, and what is here instead.
local GLOBALS = {
  torch = 'write cr.randn(2, 3): ? torch.randn says what a name is here', np = NUMPY, numpy = NUMPY,
  F = 'write nn.softmax(x): ? F.softmax says what a name is here', json = "write json = require 'cr.json'", help = 'write ? NAME',
  len = 'write #list, or x:size(1)', range = 'write for i = 1, 10 do print(i) end, or cr.arange(1, 10)', str = 'write tostring(x)',
  float = 'write tonumber(x)', int = 'write math.floor(x)', dir = 'write x. and press Tab', exit = 'write :quit', quit = 'write :quit',
}

-- Returns the method that a misspelt one was meant to be.
local function method_meant(text, word)
  local owner = text:match('([%a_][%w_.]*):' .. word .. '%f[^%w_]')
  local complete = require 'cr.tools.prompt.complete'
  local names = owner and complete.methods(complete.follow(owner)) or {}
  if #names == 0 then return nil end
  return errors.did_you_mean_close(word, names, math.max(1, #word / 3), ('Tab after %s: lists its methods'):format(owner))
end

--- Returns advice about a message, or nil.
--- @param text string what was typed
--- @param message string
--- @return string?
function M.of(text, message)
  local method = message:match "attempt to call method '([%w_]+)'"
  if method then return method_meant(text, method) end
  local global = message:match "global '([%w_]+)' %(a nil value%)"
  if global then return GLOBALS[global] end
  local called = message:find 'function arguments expected' and text:match '([%a_][%w_.]*:[%a_][%w_]*)%s*$'
  if called then return ('a method is called with parentheses: %s()'):format(called) end
  if not message:find 'expected' and not message:find 'unexpected' and not message:find 'malformed' then return nil end
  for _, form in ipairs(FORMS) do
    if text:find(form[1]) then return form[2] end
  end
end

return M
