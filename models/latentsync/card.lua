--- Options of a GPU (cr.cuda.options) as a setting: 'tf32=on,fusion=off'.

local cuda = require 'cr.cuda'
local errors = require 'cr.errors'

local M = {}

local NAMES = { 'tf32', 'search', 'blocking', 'fp8_fast', 'fusion', 'linear_bias', 'linear_activation', 'linear_residual',
  'linear_geglu', 'conv_bias', 'conv_activation', 'conv_residual', 'conv_upsample', 'norm_bias', 'norm_silu', 'norm_after' }
local known = {}
for _, name in ipairs(NAMES) do known[name] = true end

--- Parses the options of a text, in its order.
--- @param text string? OPTION=on or OPTION=off, separated by commas or +; or 'none'
--- @return table[] a list of {name, on}
--- @return string? problem one sentence
function M.read(text)
  local list = {}
  for word in (text ~= 'none' and text or ''):gmatch '[^,+]+' do
    local name, state = word:match '^([%w_]+)=(%a+)$'
    if not name or state ~= 'on' and state ~= 'off' then
      return list, ("'%s' is not of the form OPTION=on or OPTION=off, as in tf32=on"):format(word)
    end
    if not known[name] then
      return list, ("a GPU has no option '%s': %s"):format(name, errors.did_you_mean(name, NAMES))
    end
    list[#list + 1] = { name, state == 'on' }
  end
  return list
end

local changes = {} -- per device, the values that the last model's setting replaced: a list of {options, name, on}

--- Sets the options of a device, and restores those that an earlier call changed.
--- @param device string
--- @param text string? as for `read`, already checked
function M.set(device, text)
  local card = device == 'cuda' and 'cuda:0' or device
  local changed = changes[card] or {}
  changes[card] = changed
  for i = #changed, 1, -1 do
    local options, name, on = unpack(changed[i])
    options[name], changed[i] = on, nil
  end
  for _, entry in ipairs((M.read(text or 'none'))) do
    local options = cuda.options(device)
    changed[#changed + 1] = { options, entry[1], options[entry[1]] }
    options[entry[1]] = entry[2]
  end
end

return M
