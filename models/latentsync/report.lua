--- The report of a finished job: seconds per stage, memory, settings, versions, hashes of the weights.

local cr = require 'cr'
local files = require 'cr.files'
local finder = require 'models.latentsync.finder'
local json = require 'cr.json'
local schema = require 'models.latentsync.settings'.schema

local M = {}

local function peak_resident()
  for line in io.lines '/proc/self/status' do
    local kib = line:match '^VmHWM:%s*(%d+)'
    if kib then return tonumber(kib) * 1024 end
  end
end

--- The GPU's name, and the peak memory used on it, without CUDA's own context.
local function card_report(device)
  local info, memory = cr.cuda.info(device), cr.memory(device)
  local tags = {}
  for i, tag in ipairs(memory.tags) do tags[i] = { name = tag.name, peak_bytes = tag.peak } end
  return {
    name = info.name, driver = info.driver, cudnn = info.cudnn, cublas = info.cublas,
    peak_bytes = memory.peak, peak_reserved_bytes = memory.peak_reserved, tags = tags,
  }
end

local hashes = {} -- by path, size and modification time

-- The files may have gigabytes, so the jobs of one process share their hashes.
local function hash_of(path)
  local now = require 'lfs'.attributes(path) or {}
  local key = ('%s %s %s %s'):format(path, now.ino, now.size, now.modification)
  hashes[key] = hashes[key] or require 'cr.weights'.sha256(path)
  return hashes[key]
end

--- @param job Job a job that has run
--- @param result table the result of job:run
--- @return table
function M.of(job, result)
  local s, model, sampler = job.settings, job.model, job.sampler
  local files_of_model = {}
  for _, list in ipairs { model.files, finder.files(s.detector, model.dir) } do
    for name, path in pairs(list) do files_of_model[name] = { path = path, sha256 = hash_of(path) } end
  end
  local told, cards = schema:report(s), {}
  for i, maker in ipairs(s.device ~= 'cpu' and job.makers or {}) do
    local ok, card = pcall(card_report, maker.device)
    cards[i] = ok and card or {}
    cards[i].device, cards[i].windows, cards[i].left_out, cards[i].idle_seconds = maker.device, maker.made, maker.out,
      maker.ahead.idle
  end
  told.device = table.concat(s.devices, ',')
  told.size, told.steps, told.threads = model.size, sampler.scheduler.options and sampler.scheduler.options.steps or s.steps, cr.threads()
  told.points = s.points_file
  told.scheduler = sampler.scheduler.name or sampler.name
  told.scheduler_options = sampler.scheduler.settings and sampler.scheduler:settings().options
  told.cached_steps = sampler.plan and sampler.counts or nil
  told.quantized_layers = model.quantized and #model.quantized or nil
  return {
    output = s.out, frames = result.frames, frames_without_face = result.missing,
    frames_in_silence = result.silent.frames, windows_in_silence = result.silent.windows, seconds = result.seconds,
    first_step_seconds = result.first_step, stages = job.progress:report(), peak_resident_bytes = peak_resident(),
    tensors_peak_bytes = cr.memory().peak, card = cards[1], cards = #cards > 1 and cards or nil, seed = s.seed,
    checkpoint = files_of_model, settings = told,
    versions = { crescent = cr.version, libav = require 'cr.media'.version(), luajit = jit.version },
  }
end

--- Writes the report as JSON.
--- @param path string
--- @param report table
function M.write(path, report) files.write(path, json.encode(report, true) .. '\n', '--report') end

return M
