-- The difference of every scheduler's result from DDIM with 100 steps, on the small model and the demo's clip: the
-- table of lua/README.md, as Markdown.
--
--     build/crescent tests/bench/methods.lua [--steps 5,10,20] [--windows 2] [--device cpu] [--only ddim,dpmpp_2m]
--         [--checkpoint models/mini] [--reference ddim:100] [--frames 16] [--markdown FILE] [--json FILE]
--
-- The file of --json is written after each method; results in it for the same settings are not measured again.
--
-- Tiny: --steps 1 --reference ddim:2 --windows 1 --frames 2 --only euler
--
-- Measured are PSNR in dB of the regenerated pixels (the mouth) as 8-bit RGB, and the relative L2 error of the final
-- latents compared with the reference's. LatentSync's DDIM leaves a little noise at the end (that of
-- alphas_cumprod[0]), the others none unless final_sigma=sigma_min: this alone is an error of 0.03 in the latents.
-- Steps are calls of the network: methods with more calls per step, such as heun, are measured with the same number
-- of calls or the next smaller possible one. Stochastic methods converge to another picture by design and are listed
-- separately.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local files = require 'cr.files'
local insert = require 'tests.support.insert'
local json = require 'cr.json'
local schedulers = require 'cr.schedulers'

local o = require 'tests.bench.options'.read("Every scheduler's difference from DDIM with 100 steps.", {
  { '--checkpoint', 'file', default = cr.root .. '/models/mini', help = 'a checkpoint folder with a demo' },
  { '--steps', default = '5,10,20', help = 'calls of the network' },
  { '--windows', 'int', default = 2, min = 1, help = 'of frames' },
  { '--frames', 'int', default = 16, min = 1, help = 'of a window' },
  { '--only', help = 'names of methods' },
  { '--reference', default = 'ddim:100', help = 'method and steps' },
  { '--device', default = 'cpu', help = 'cpu or a GPU' },
  { '--markdown', 'file', help = 'file for the table, in Markdown' },
  { '--json', 'file', help = 'file for the results; an interrupted run continues from it' },
})
local counts = {}
for n in o.steps:gmatch '%d+' do counts[#counts + 1] = tonumber(n) end
local reference, reference_steps = o.reference:match '^(.*):(%d+)$'
if not reference then cli.fail(("--reference: '%s' is not of the form ddim:100"):format(o.reference)) end

-- Methods for networks that do not predict the noise.
local OTHERS = { ddim_zsnr_v = true }

local names = {}
if o.only then
  for name in o.only:gmatch '[^,]+' do names[#names + 1] = name end
else
  for _, name in ipairs(schedulers.names()) do
    if not OTHERS[name] then names[#names + 1] = name end
  end
  for _, name in ipairs { 'dpmpp_2m_karras', 'unipc_karras', 'euler_karras', 'res_multistep_karras', 'gradient_estimation_karras',
    'kdpm2_karras', 'euler_ays', 'euler_gits', 'dpmpp_2m_ays', 'dpmpp_2m_gits', 'dpmpp_2m:final_sigma=sigma_min',
    'dpmpp_3m:final_sigma=sigma_min', 'unipc:final_sigma=sigma_min' } do names[#names + 1] = name end
end

-- The number of steps that calls the network at most `calls` times, and the actual number of calls; nil if there is
-- none.
local function steps_for(name, calls)
  for steps = calls, 1, -1 do
    local ok, s = pcall(schedulers.load, name, { steps = steps })
    if ok and #s.timesteps <= calls then return steps, #s.timesteps end
  end
end

-- All faces of a sample with 8-bit values, f32 [n S S 3] on the CPU, window by window.
local function faces_of(sample)
  local faces = {}
  for w, latents in ipairs(sample.latents) do
    local places = {}
    for i = 1, latents and latents:size(2) or 0 do places[i] = { w, i } end
    faces[w] = #places > 0 and cr.keep(cr.scope(function()
      return ((sample:faces(places):to 'cpu':to 'f32' + 1) * 127.5):round():clamp(0, 255)
    end)) or false
  end
  return faces
end

-- The relative error of the latents and PSNR of the mouth, over all windows.
local function distances(sample, faces, truth, true_faces, mouth)
  local difference, length, squares, count = 0, 0, 0, 0
  for w, a in ipairs(sample.latents) do
    local b = truth.latents[w]
    if a and b then
      cr.scope(function()
        local x, y = a:to 'cpu':to 'f64', b:to 'cpu':to 'f64'
        difference = difference + (x - y):square():sum():item()
        length = length + y:square():sum():item()
        squares = squares + ((faces[w] - true_faces[w]):square() * mouth):to('f64'):sum():item()
        count = count + mouth:sum():item() * 3 * faces[w]:size(1)
      end)
    end
  end
  return math.sqrt(difference / length), 10 * math.log10(255 ^ 2 / math.max(squares / count, 1e-9))
end

local function free_faces(faces)
  for _, f in ipairs(faces) do
    if f then f:free() end
  end
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

-- All settings that affect the results, except the methods.
local SETTINGS = { reference = o.reference, calls = counts, windows = o.windows, frames = o.frames, checkpoint = o.checkpoint }

-- The rows written by an earlier run, by name.
local function earlier_rows()
  local text = o.json and files.read(o.json)
  local rows = {}
  if not text then return rows end
  local there = json.decode(text)
  for key, value in pairs(SETTINGS) do
    if json.encode(value) ~= json.encode(there[key]) then return rows end
  end
  for _, row in ipairs(there.rows) do rows[row.name] = row end
  return rows
end

local function write_rows(rows)
  if not o.json then return end
  local all = { rows = rows }
  for key, value in pairs(SETTINGS) do all[key] = value end
  files.write(o.json, json.encode(all) .. '\n', '--json')
end

-- What measures a method, and what gives its memory back.
local function open()
  local run = require 'models.latentsync'.session {
    video = o.checkpoint .. '/demo.mp4', audio = o.checkpoint .. '/demo.flac', checkpoint = o.checkpoint, device = o.device,
    quiet = true, frames = o.frames, start = 0.4, duration = o.windows * o.frames / 25,
  }
  local truth = measured(run, { scheduler = reference, steps = tonumber(reference_steps) })
  if not truth then cli.fail '--reference: could not be sampled: see above' end
  local true_faces = faces_of(truth)
  local mouth = cr.scope(function() return run.mask:to 'cpu':lt(0.5):to 'f32' end)
  return function(name)
    local row = { name = name, at = {} }
    for k, calls in ipairs(counts) do
      local steps, made = steps_for(name, calls)
      local sample = steps and measured(run, { scheduler = name, steps = steps })
      row.at[k] = false
      if sample then
        local faces = faces_of(sample)
        local distance, psnr = distances(sample, faces, truth, true_faces, mouth)
        free_faces(faces)
        row.at[k] = { calls = made, distance = distance, psnr = psnr }
        free(sample)
      end
    end
    -- One that draws noise ends elsewhere when the generator begins elsewhere.
    local steps = steps_for(name, math.max(unpack(counts)))
    if steps then
      local noise, ends = run:noise(run.settings.seed), {}
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
    return row
  end, function()
    free(truth)
    free_faces(true_faces)
    mouth:free()
    run:free()
  end
end

cr.run(function()
  local rows, there, row_of, close = {}, earlier_rows(), nil, nil
  for _, name in ipairs(names) do
    if not there[name] and not row_of then row_of, close = open() end
    rows[#rows + 1] = there[name] or row_of(name)
    write_rows(rows)
    io.stderr:write(('%d of %d: %s\n'):format(#rows, #names, name))
  end
  if close then close() end

  local sorted_by = math.min(2, #counts)
  table.sort(rows, function(a, b)
    if a.noisy ~= b.noisy then return not a.noisy end
    local p, q = a.at[sorted_by], b.at[sorted_by]
    local x, y = p and p.psnr or -1, q and q.psnr or -1
    if x ~= y then return x > y end
    return a.name < b.name
  end)
  local lines = { '| scheduler | ' .. table.concat(counts, ' calls | ') .. ' calls |', '| --- |' .. (' --- |'):rep(#counts) }
  for _, row in ipairs(rows) do
    local cells = {}
    for k, calls in ipairs(counts) do
      local c = row.at[k]
      cells[k] = not c and '-' or ('%.1f dB, %.3f%s'):format(c.psnr, c.distance, c.calls ~= calls and (' (%d)'):format(c.calls) or '')
    end
    lines[#lines + 1] = ('| `%s`%s | %s |'):format(row.name, row.noisy and ' (draws noise)' or '', table.concat(cells, ' | '))
  end
  local text = table.concat(lines, '\n') .. '\n'
  io.write(text)
  if o.markdown then insert(o.markdown, 'methods', text) end
end)
