--- The engine of `crescent upscale`: upscales an image or a video in bounded memory.
--
--     cr.run(function() require 'models.upscale.job'.run('in.mp4', 'out.mp4', { model = 'animevideov3', scale = 2 }) end)
--
-- A video is decoded, upscaled and encoded by three concurrent tasks, joined by bounded channels. Its sound, colour
-- tags and frame rate are kept. An output appears under its name only when it is complete.

local cr = require 'cr'
local dealers = require 'models.cards.dealer'
local enlargers = require 'models.upscale.enlarger'
local errors = require 'cr.errors'
local files = require 'cr.files'
local media = require 'cr.media'
local networks = require 'models.upscale.networks'
local progress_of = require 'cr.tools.progress'
local settings = require 'models.upscale.settings'

local M = {}

local AHEAD = 2 -- frames that may wait between two tasks

local function is_png(path) return path:lower():find '%.png$' ~= nil end

-- Checks the input against the output.
local function inspect(input, output, s)
  files.check_readable(nil, input)
  files.check_folder('OUT', output)
  files.check_output(output, { IN = input })
  local info = media.probe(input)
  if not info.has_video then errors.fail(input .. ' contains neither an image nor a video') end
  info.still = info.format:find '_pipe' ~= nil or info.format:find '^image2' ~= nil
  if info.still and not is_png(output) then errors.fail(output .. ': an image is written as PNG, so the name must end in .png') end
  if not info.still and is_png(output) then errors.fail(input .. ' is a video, which cannot be written as PNG') end
  if s.lossless and not info.still and not output:find '%.mkv$' then
    errors.fail(output .. ': --lossless writes Matroska, so the name must end in .mkv')
  end
  if info.width < 2 or info.height < 2 then
    errors.fail(('%s: an image of %d x %d pixels is too small to upscale'):format(input, info.width, info.height))
  end
  return info
end

local function enlarge_picture(enlarger, input, output, progress)
  cr.scope(function()
    local picture = media.read_picture(input, { whole = true })
    media.check_picture(output, enlarger:size(picture:size(1), picture:size(2)))
    local large = progress:measure('enlarge', 1, function() return enlarger:picture(picture):to 'cpu' end)
    media.write_picture(output, large)
  end)
  progress:advance(1)
end

-- Frames are dealt to upscalers as these become free (models/cards/dealer.lua).
local function enlarge_video(makers, info, input, output, s, progress)
  local enlarger, several = makers[1].model, #makers > 1
  local height, width = enlarger:size(info.height, info.width)
  local fps = info.fps > 0 and info.fps or 25
  if info.duration > 0 then progress:expect(math.max(1, math.floor(info.duration * fps + 0.5))) end
  -- With several GPUs, a frame is copied to the one that upscales it.
  local reader = media.reader(input, { fps = fps, device = several and 'cpu' or enlarger.net.device, planes = s.device ~= 'cpu',
    wait = true, deep = true })
  local ok, writer = pcall(media.writer, output, {
    like = input, width = width, height = height, fps = fps, audio = info.has_audio and input or nil, codec = s.codec, crf = s.crf,
    lossless = s.lossless, pix_fmt = s.pix_fmt, deep = true,
  })
  if not ok then
    reader:close()
    error(writer, 0)
  end
  local done = cr.channel(AHEAD)
  local dealer = dealers.new {
    makers = makers, what = 'frames', note = function(text) progress:note(text, true) end,
    make = function(maker, frame)
      if several then frame:move(maker.device) end
      return progress:measure('enlarge', 1, cr.scope, function()
        local whole = reader.bits > 8 and media.floats(frame:whole()) or frame:rgb()
        return { picture = cr.keep(writer:pack(maker.model:frame(whole))) }
      end)
    end,
  }

  local function decode()
    while true do
      local frame = progress:measure('decode', 1, reader.read, reader, 1, 1)[1]
      if not frame then break end
      dealer:deal(frame)
    end
    dealer:ended()
  end

  local function collect()
    for ticket in function() return dealer:next() end do
      done:put(dealer:collect(ticket, function(made) return made.picture end))
      ticket.piece:free()
    end
    dealer:close()
    done:close()
  end

  local function encode()
    for frame in done do
      progress:measure('encode', 1, writer.write, writer, { frame })
      frame:free()
      progress:advance(1)
    end
  end

  local tasks = { decode, collect, encode }
  for _, maker in ipairs(makers) do tasks[#tasks + 1] = function() dealer:work(maker) end end
  local problem
  ok, problem = pcall(cr.all, tasks)
  if ok then ok, problem = pcall(progress.measure, progress, 'encode', 0, writer.close, writer) end
  if not ok then writer:abort() end
  reader:close()
  progress:clear()
  if not ok then error(problem, 0) end
end

local function report(input, output, s, makers, progress)
  local enlarger, cards, told = makers.first, {}, settings:report(s)
  for i, maker in ipairs(makers) do cards[i] = { device = maker.device, frames = maker.made, left_out = maker.out } end
  told.device = table.concat(s.devices, ',')
  return {
    input = input, output = output, frames = progress.done, seconds = progress:seconds(), stages = progress:report(),
    network = enlarger.net.name, weights = { path = enlarger.net.path, sha256 = require 'cr.weights'.sha256(enlarger.net.path) },
    settings = told, cards = #cards > 1 and cards or nil, tensors_peak_bytes = cr.memory().peak,
    versions = { crescent = cr.version, libav = media.version(), luajit = jit.version },
  }
end

--- Runs a job. Must be called in a task (cr.run).
--- @param input string an image or a video
--- @param output string .png for an image, a video file for a video
--- @param given table settings (models/upscale/settings.lua), by name
--- @param progress Progress? the progress of an enclosing job
--- @return table {frames, seconds, height, width (of the result)}
function M.run(input, output, given, progress)
  local s = settings:check('upscale', given)
  s.devices = require 'cr.cuda'.choose_all(s.device or 'auto', '--device')
  s.device = s.devices[1]
  settings:complete(s)
  local info = inspect(input, output, s)
  progress = progress or progress_of.new { quiet = s.quiet, words = { 'part', 'frame' } }
  local loaded = {}
  local function load(device)
    local net = progress:measure('load', 0, networks.load, s.model, setmetatable({ device = device }, { __index = s }))
    loaded[#loaded + 1] = enlargers.new(net, { scale = s.scale, tile = s.tile, beside = #s.devices > 1,
      note = function(text) progress:note(text) end,
      told = function(k, n) progress:step(math.min(progress.done + 1, progress.total or math.huge), progress.total, k, n) end })
    return loaded[#loaded]
  end
  local enlarger = load(s.device)
  if info.still then progress:expect(1) end
  local makers = { first = enlarger }
  for i, device in ipairs(s.devices) do
    makers[i] = { device = device, model = i == 1 and enlarger or nil, load = function() return load(device) end }
  end
  local height, width = enlarger:size(info.height, info.width)
  local ok, problem = pcall(function()
    if height < 1 or width < 1 then
      errors.fail(('--scale: %g leaves nothing of %d x %d pixels'):format(s.scale, info.width, info.height))
    end
    if info.still then
      enlarge_picture(enlarger, input, output, progress)
    else
      enlarge_video(makers, info, input, output, s, progress)
    end
    if s.report then
      local text = require 'cr.json'.encode(report(input, output, s, makers, progress), true)
      files.write(s.report, text .. '\n', '--report')
    end
  end)
  for _, one in ipairs(loaded) do one:free() end
  progress:clear()
  if not ok then error(problem, 0) end
  return { frames = progress.done, seconds = progress:seconds(), height = height, width = width }
end

return M
