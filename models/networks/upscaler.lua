--- Loads an upscaling network from a weights file: its type and scale are derived from the tensors.
--
-- Accepted files: the authors' .pth (`params_ema`, else `params`), the same tensors in any other weights file, the
-- first ESRGAN's, and ncnn's .param with its .bin.

local cr = require 'cr'
local weights = require 'cr.weights'
local ncnn = require 'models.networks.ncnn'

local M = {}

local NETWORKS = { require 'models.networks.rrdbnet', require 'models.networks.srvgg' }

-- Possible prefixes of a network's names; the first match counts.
local PREFIXES = { 'params_ema.', 'params.', 'state_dict.', 'model_state_dict.', '' }

local function open(path)
  if path:find '%.param$' then return ncnn.open(path) end
  if path:find '%.bin$' and io.open(path:gsub('%.bin$', '') .. '.param') then
    return ncnn.open(path:gsub('%.bin$', '') .. '.param', path)
  end
  return weights.open(path)
end

-- Recognizes a file's network; returns it, its prefix and the mapping of its names.
local function recognize(file)
  for _, prefix in ipairs(PREFIXES) do
    for _, network in ipairs(NETWORKS) do
      local names = network.names(file, prefix)
      if names then return network, prefix, names end
    end
  end
  error(('%s: it contains neither RRDBNet nor SRVGGNetCompact, the supported upscaling networks; its first tensor is %s')
    :format(file.path, weights.printable(file.names[1] or 'none')), 0)
end

-- A file with its tensors renamed, as weights.check requires.
local function renamed(file, prefix, names)
  local shapes, full, list = {}, {}, {}
  for _, name in ipairs(file.names) do
    if name:sub(1, #prefix) == prefix then
      local own = names(name:sub(#prefix + 1))
      shapes[own], full[own] = file:info(name).shape, name
      list[#list + 1] = own
    end
  end
  return {
    path = file.path, names = list, shapes = shapes,
    has = function(_, name) return full[name] ~= nil end,
    info = function(_, name) return file:info(full[name]) end,
  }
end

local function load_tree(path, options)
  local file = open(path)
  local ok, tree, network, config = pcall(function()
    local network, prefix, names = recognize(file)
    local view = renamed(file, prefix, names)
    local config = network.config(view.shapes, path)
    weights.check(view, network.expected(config), { surplus = true })
    return weights.tree(file, { prefix = prefix, rename = names, dtype = options.dtype, device = options.device }), network, config
  end)
  file:close()
  if not ok then error(tree, 0) end
  return tree, network, config
end

-- Computes share * a + (1 - share) * b, tensor by tensor, in a; b is freed.
local function blend(a, b, share)
  for key, value in pairs(a) do
    if cr.is_tensor(value) then
      a[key] = cr.keep(cr.lincomb({ value, b[key] }, { share, 1 - share }))
      value:free()
      b[key]:free()
    else
      blend(value, b[key], share)
    end
  end
end

local function same_config(a, b)
  for key, value in pairs(a) do
    if b[key] ~= value then return false end
  end
  return true
end

--- Loads a network.
--- @param path string
--- @param options table? {device = 'cpu', dtype = 'f32', other = path of a second file of the same network, share = the first
---   file's weight in the blend (0.5)}
--- @return table {forward = fun(self, x), scale, margin, multiple, exact, pixel_values, name, device, dtype, path, free}:
---   `forward` takes [N H W 3] in [0, 1] in that dtype, with H and W multiples of `multiple`, and returns [N scale*H scale*W 3],
---   not clamped; pixels farther than `margin` have no influence (`exact`), or a negligible one
function M.load(path, options)
  options = options or {}
  local o = { device = options.device or 'cpu', dtype = options.dtype or 'f32' }
  local tree, network, config = load_tree(path, o)
  if options.other then
    local second, other, its = load_tree(options.other, o)
    if other ~= network or not same_config(config, its) then
      error(('%s and %s contain different networks, so their weights cannot be blended'):format(path, options.other), 0)
    end
    blend(tree, second, options.share or 0.5)
  end
  local net = network.new(tree, config)
  net.name, net.device, net.dtype, net.path = network.name, o.device, o.dtype, path
  net.other, net.share = options.other, options.share
  function net.free() weights.free { net.w, net.leak, net.growing_leak } end
  return net
end

return M
