--- Recipes say which layers of which network are quantized to which format. The named ones are defined here; a user's
--- file returns a table of the same form.
--
--     return { unet = { { '%.proj_out$', 'none' }, { '^mid_block%.', 'int8' }, default = '8bit' }, whisper = { default = 'int8' } }
--
-- The rows of a network are tried in order. The first row whose pattern matches a layer's name sets its format;
-- `default` applies to the rest ('none' if it is missing). Networks that are not mentioned stay unchanged. Names are
-- those in the network, with fused projections: to_qkv, to_kv, Whisper's attn.packed. A format is 'int8', 'fp8',
-- 'int4', 'none', or '8bit', which is the fastest 8-bit format for that layer on the device. A row with `calibrated =
-- true` applies only if ranges were measured. { keep = patterns, only = patterns } is short for fp8 in the UNet.

local errors = require 'cr.errors'
local layers = require 'models.quantize.layers'
local quant = require 'cr.quant'

local M = {}

M.NETWORKS = { 'unet', 'vae', 'whisper' }
local FORMATS = { int8 = true, fp8 = true, int4 = true, none = true, ['8bit'] = true }

local function rows(default, ...)
  local list = { default = default }
  for _, part in ipairs { ... } do
    for _, row in ipairs(part) do list[#list + 1] = row end
  end
  return list
end

local function all(format, patterns)
  local list = {}
  for i, pattern in ipairs(patterns) do list[i] = { pattern, format } end
  return list
end

-- Layers that run once per window or on few rows, and feed everything else: quantizing them saves little time and adds much error.
local EXACT = all('none', { '^conv_in$', '^conv_out$', '^time_embedding%.', '%.time_emb_proj$' })
local ONCE = all('none', { '%.to_kv$' })

-- The whole signal passes through these layers, not only a residual branch: they cause most of the error and do
-- little of the work.
local SIGNAL = { '%.conv_shortcut$', '%.proj_in$', '%.proj_out$' }

-- The input comes from attention, so quantizing it per row takes a pass of its own, which costs most of what the product saves. With a
-- static range, attention writes quantized values directly.
local APART = rows(nil, { { '%.to_out%.0$', '8bit', calibrated = true } }, all('none', { '%.to_out%.0$' }))

-- Narrow feed-forwards: one kernel computes the first product in float16 with GEGLU. With a static range of the second product's input,
-- this kernel writes quantized values.
local NARROW = rows(nil, {
  { '^down_blocks%.0%..*%.net%.', '8bit', calibrated = true }, { '^up_blocks%.3%..*%.net%.', '8bit', calibrated = true },
}, all('none', { '^down_blocks%.0%..*%.net%.', '^up_blocks%.3%..*%.net%.' }))

-- For fp8 only: layers that fp8 does not speed up (tests/bench/cuda_fp8.lua, cuda_fp8_linear.lua).
local FP8 = rows('fp8', EXACT, ONCE, all('none', SIGNAL), all('none', {
  '^mid_block%.',
  '%.to_out%.0$', -- quantizing its input in a pass of its own costs most of what the product saves
  '^down_blocks%.0%.', '^up_blocks%.3%.',
}))

-- The VAE decoder's resnets and upsamplers, except the end of its last block, which produces the pixels. On the small model each
-- convolution alone has an error of 0.1 to 1 % up to there, and 2 to 4 % after it. Ranges cannot be derived from the norms.
local VAE8 = rows('none', {
  { '^decoder%.up_blocks%.3%.resnets%.0%.conv[12]$', 'int8', calibrated = true },
  { '^decoder%.up_blocks%.3%.', 'none' },
  { '^decoder%..*%.conv[12]?$', 'int8', calibrated = true },
})

local WHISPER = { int8 = rows('int8', all('none', { 'conv[12]$' })), fp8 = rows('fp8', all('none', { 'conv[12]$' })),
  int4 = rows('int4', all('none', { 'conv[12]$' })), ['8bit'] = rows('8bit', all('none', { 'conv[12]$' })) }

-- The recipes per network; a plain name stands for the rows of `plain`.
local named = {
  int8 = { unet = rows('int8', EXACT, ONCE), vae = VAE8, whisper = WHISPER.int8 },
  fp8 = { unet = FP8, whisper = WHISPER.fp8 },
  ['8bit'] = { unet = rows('8bit', EXACT, ONCE, all('none', SIGNAL), APART, NARROW), vae = VAE8, whisper = WHISPER['8bit'] },
  -- The layers of SIGNAL stay at 8 bits.
  int4 = { unet = rows('int4', EXACT, ONCE, all('int8', SIGNAL)), vae = VAE8, whisper = WHISPER.int4 },
}
local plain = { 'unet', 'vae' }

--- The names of recipes, sorted.
M.names = { '8bit', 'fp8', 'int4', 'int8' }

-- ---- reading -------------------------------------------------------------------------------------

local function is_pattern(x) return type(x) == 'string' and pcall(string.find, '', x) end

local function patterns(where, key, list)
  local good = type(list) == 'table'
  for _, pattern in ipairs(good and list or {}) do good = good and is_pattern(pattern) end
  if not good then error(("%s: '%s' is not a list of Lua patterns under keep or only"):format(where, key), 0) end
  return list
end

-- Expands { keep =, only = } to a recipe: fp8 for the UNet's products.
local function short(where, spec)
  for key in pairs(spec) do
    if key ~= 'keep' and key ~= 'only' then
      error(("%s: '%s' is not a list of Lua patterns under keep or only"):format(where, tostring(key)), 0)
    end
  end
  local keep = all('none', spec.keep and patterns(where, 'keep', spec.keep) or {})
  if not spec.only then return { unet = rows('fp8', keep) } end
  return { unet = rows('none', keep, all('fp8', patterns(where, 'only', spec.only))) }
end

local function known_format(where, what, format)
  if type(format) == 'string' and FORMATS[format] then return end
  error(("%s: %s: '%s' is not a format: int8, fp8, int4, 8bit or none"):format(where, what, tostring(format)), 0)
end

-- Where a script's own rows come from: rows -> {file or 'quant', network}. The named recipes have rows that only larger
-- networks need, so nobody is told about those.
local origins = setmetatable({}, { __mode = 'k' })

--- Returns a sentence about the first of a user's rows that matches no layer of a network, probably a mistake; or nil.
--- @param list table rows of a recipe
--- @param every QuantLayer[] the network's layers
--- @return string?
function M.unmatched(list, every)
  local origin = origins[list]
  for i, row in ipairs(origin and list or {}) do
    local any = false
    for _, layer in ipairs(every) do any = any or layer.name:find(row[1]) ~= nil end
    if not any then return ("%s: row %d of %s matches no layer: '%s'"):format(origin.where, i, origin.network, row[1]) end
  end
end

--- Checks a recipe that a script gives.
--- @param spec table
--- @param where string prefix of messages: a file's name
--- @return table recipe
function M.checked(spec, where)
  if type(spec) ~= 'table' then error(('%s: it must return a table, not %s'):format(where, type(spec)), 0) end
  if spec.keep ~= nil or spec.only ~= nil or next(spec) == nil then return short(where, spec) end
  for network, list in pairs(spec) do
    if not named.int8[network] then
      error(("%s: there is no network '%s': unet, vae or whisper"):format(where, tostring(network)), 0)
    end
    if type(list) ~= 'table' then error(('%s: %s is not a list of { pattern, format }'):format(where, network), 0) end
    known_format(where, network .. '.default', list.default or 'none')
    for i, row in ipairs(list) do
      local what = ('row %d of %s'):format(i, network)
      if type(row) ~= 'table' or not is_pattern(row[1]) then
        error(('%s: %s is not { pattern, format }'):format(where, what), 0)
      end
      known_format(where, what, row[2])
    end
    for key in pairs(list) do
      if type(key) ~= 'number' and key ~= 'default' then
        error(("%s: %s has no '%s': rows { pattern, format } and default"):format(where, network, tostring(key)), 0)
      end
    end
    origins[list] = { where = where, network = network }
  end
  return spec
end

--- Reads a recipe from a Lua file that returns it.
--- @param path string
--- @return table
function M.read(path)
  local chunk, why = loadfile(path)
  if not chunk then error(why, 0) end
  local ok, spec = pcall(chunk)
  if not ok then error(('%s: %s'):format(path, spec), 0) end
  return M.checked(spec, path)
end

local function one(name)
  if named[name] or name == 'none' then return named[name] or {} end
  if not name:find '%.lua$' then
    error(("there is no recipe '%s': %s (or a file that ends in .lua)"):format(name, errors.did_you_mean(name, M.names)), 0)
  end
  return M.read(name)
end

--- The recipe that a text describes: '8bit', 'mine.lua', 'whisper=int8', 'unet=8bit+whisper=int8'.
--- @param text string
--- @return table? recipe; nil for 'none'
function M.named(text)
  local recipe = {}
  for word in text:gmatch '[^+]+' do
    local network, name = word:match '^(%a+)=(.+)$'
    if network and not named.int8[network] then
      error(("there is no network '%s': %s"):format(network, errors.did_you_mean(network, M.NETWORKS)), 0)
    end
    local found = one(name or word)
    for _, of in ipairs(network and { network } or named[word] and plain or M.NETWORKS) do
      if network and not found[of] and name ~= 'none' then error(('%s has no rows for the network %s'):format(name, of), 0) end
      recipe[of] = found[of]
    end
  end
  return next(recipe) and recipe or nil
end

-- ---- choosing ------------------------------------------------------------------------------------

--- Resolves a format for a device; an unsupported format is replaced by the next best one. '8bit' means int8: per-row
--- int8 products are as fast as fp8 on GPUs that have both (measured on an H200), and more accurate.
--- @param format string
--- @param device string
--- @return string format 'int8', 'fp8', 'int4' or 'none'
--- @return string? lacking why it is not the requested one
function M.on_device(format, device)
  if format == '8bit' then
    return quant.available(device, 'int8') and 'int8' or 'none'
  end
  if format == 'none' then return format end
  local there, why = quant.available(device, format)
  if there then return format end
  return format == 'fp8' and quant.available(device, 'int8') and 'int8' or 'none', why
end

--- The format of a layer by a network's rows.
--- @param list table rows of a recipe
--- @param layer QuantLayer
--- @param device string
--- @param calibrated boolean? input ranges were measured
--- @return string format 'none', 'int8', 'fp8' or 'int4'
--- @return string? lacking
function M.choose(list, layer, device, calibrated)
  local format = list.default or 'none'
  for _, row in ipairs(list) do
    if layer.name:find(row[1]) and (calibrated or not row.calibrated) then
      format = row[2]
      break
    end
  end
  local lacking
  format, lacking = M.on_device(format, device)
  if format ~= 'none' and not layers.takes(layer, format) then return 'none', lacking end
  return format, lacking
end

--- For weights.tree's `apart`: whether a tensor will be quantized, so that its memory can be freed afterwards.
--- @param network string
--- @param list table rows
--- @param device string
--- @return fun(name: string, shape: integer[]): boolean
function M.apart(network, list, device)
  return function(name, shape)
    local stem = name:match '^(.*)%.weight$'
    local layer = stem and layers.described(layers.fused(network, stem), shape)
    return layer ~= nil and M.choose(list, layer, device) ~= 'none'
  end
end

return M
