-- How far the result of every scheduler is from that of DDIM with 100 steps, on the small model and the demo's clip: the
-- table of the README, as Markdown.
--
--     build/crescent tests/bench/methods.lua [--steps 5,10,20] [--windows 2] [--device cpu] [--only ddim,dpmpp_2m]
--         [--checkpoint models/mini] [--reference ddim:100] [--frames 16] [--markdown FILE] [--json FILE]
--
-- A figure is the length of the difference of the final latents by the length of the reference's. Steps are calls of the
-- network: methods that make more calls than asked for, such as heun, are measured where they make the same number
-- or the next smaller. Methods that draw noise on the way come to another picture by design and stand apart.

local cr = require 'cr'
local cli = require 'cr.cli'
local cjson = require 'cjson'
local insert = require 'tests.bench.insert'
local schedulers = require 'cr.schedulers'

local o = {
  checkpoint = cr.root .. '/models/mini', device = 'cpu', steps = '5,10,20', windows = '2', reference = 'ddim:100', frames = '16',
}
for i = 1, #arg, 2 do
  local name = arg[i]:match '^%-%-(%a+)$'
  if not (name and arg[i + 1]) then cli.fail(('%s: options are --NAME VALUE, see the head of this file'):format(arg[i])) end
  o[name] = arg[i + 1]
end

local counts = {}
for n in o.steps:gmatch '%d+' do counts[#counts + 1] = tonumber(n) end
local reference, reference_steps = o.reference:match '^(.*):(%d+)$'
if not reference then cli.fail(("--reference: '%s' is not of the form ddim:100"):format(o.reference)) end

-- Methods for networks that predict something else than the noise.
local OTHERS = { ddim_zsnr_v = true }

local names = {}
if o.only then
  for name in o.only:gmatch '[^,]+' do names[#names + 1] = name end
else
  for _, name in ipairs(schedulers.names()) do
    if not OTHERS[name] then names[#names + 1] = name end
  end
  for _, name in ipairs { 'dpmpp_2m_karras', 'unipc_karras', 'euler_karras' } do names[#names + 1] = name end
end

-- Steps to ask for so that the network is called `calls` times or less, and how often it is; nil if that cannot be.
local function steps_for(name, calls)
  for steps = calls, 1, -1 do
    local ok, s = pcall(schedulers.load, name, { steps = steps })
    if ok and #s.timesteps <= calls then return steps, #s.timesteps end
  end
end

-- Relative distance over all windows.
local function distance(sample, reference_sample)
  local difference, length = 0, 0
  for w, a in ipairs(sample.latents) do
    local b = reference_sample.latents[w]
    if a and b then
      cr.scope(function()
        local x, y = a:to 'cpu':to 'f64', b:to 'cpu':to 'f64'
        difference = difference + (x - y):square():sum():item()
        length = length + y:square():sum():item()
      end)
    end
  end
  return math.sqrt(difference / length)
end

local function free(sample)
  for _, latents in ipairs(sample.latents) do
    if latents then latents:free() end
  end
end

local function measured(run, options)
  options.quiet = true
  local ok, sample = pcall(run.sample, run, options)
  if ok then return sample end
  io.stderr:write(('%s: %s\n'):format(options.scheduler, tostring(sample)))
end

cr.run(function()
  local run = require 'models.latentsync'.session {
    video = o.checkpoint .. '/demo.mp4', audio = o.checkpoint .. '/demo.flac', checkpoint = o.checkpoint, device = o.device,
    quiet = true, frames = tonumber(o.frames), start = 0.4, duration = tonumber(o.windows) * tonumber(o.frames) / 25,
  }
  local truth = measured(run, { scheduler = reference, steps = tonumber(reference_steps) })
  local rows = {}
  for _, name in ipairs(names) do
    local row = { name = name, at = {} }
    for k, calls in ipairs(counts) do
      local steps, made = steps_for(name, calls)
      local sample = steps and measured(run, { scheduler = name, steps = steps })
      if sample then
        row.at[k] = { calls = made, distance = distance(sample, truth) }
        free(sample)
      end
    end
    -- One that draws noise ends elsewhere when the generator begins elsewhere.
    local steps = steps_for(name, 3)
    if steps then
      local noise, ends = run:noise(run.seed), {}
      for seed = 1, 2 do
        local s = schedulers.load(name, { steps = steps })
        s:use(cr.generator(seed, 'philox'))
        ends[seed] = cr.scope(function()
          s:reset()
          local x = s:start(noise:to 'cpu':to 'f32')
          for _, t in ipairs(s.timesteps) do x = s:step(x * 0.5, t, x) end
          return x:sum():item()
        end)
      end
      row.noisy = ends[1] ~= ends[2]
    end
    rows[#rows + 1] = row
    io.stderr:write(('%d of %d\n'):format(#rows, #names))
  end
  free(truth)
  run:free()

  local sorted_by = math.min(2, #counts)
  table.sort(rows, function(a, b)
    if a.noisy ~= b.noisy then return not a.noisy end
    local p, q = a.at[sorted_by], b.at[sorted_by]
    local x, y = p and p.distance or math.huge, q and q.distance or math.huge
    if x ~= y then return x < y end
    return a.name < b.name
  end)
  local lines = { '| scheduler | ' .. table.concat(counts, ' calls | ') .. ' calls |', '| --- |' .. (' --- |'):rep(#counts) }
  for _, row in ipairs(rows) do
    local cells = {}
    for k, calls in ipairs(counts) do
      local c = row.at[k]
      cells[k] = not c and '-' or ('%.3f%s'):format(c.distance, c.calls ~= calls and (' (%d)'):format(c.calls) or '')
    end
    lines[#lines + 1] = ('| `%s`%s | %s |'):format(row.name, row.noisy and ' (draws noise)' or '', table.concat(cells, ' | '))
  end
  local text = table.concat(lines, '\n') .. '\n'
  io.write(text)
  if o.markdown then insert(o.markdown, 'methods', text) end
  if o.json then
    require 'cr.files'.write(o.json, cjson.encode { reference = o.reference, calls = counts, rows = rows } .. '\n', '--json')
  end
end)
