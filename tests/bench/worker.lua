-- The overhead of a worker's job compared with the plain command: wall and CPU seconds for the same clip, alternately
-- by `crescent lipsync` and by a job for an idle worker (Redis, files in a folder). The command loads the model each
-- time, but the worker does not, so the command's loading time from its report is also printed.
--
--     build/crescent tests/bench/worker.lua [--checkpoint DIR] [--size N] [--seconds S] [--steps N] [--pairs N]
--
-- Tiny: --seconds 0.2 --steps 1 --pairs 1

local cr = require 'cr'
local child = require 'tests.support.child'
local clouds = require 'tests.support.cloud'
local files = require 'cr.files'
local json = require 'cr.json'
local now = require 'cr.clock'
local options = require 'tests.bench.options'
local redis = require 'cr.remote.redis'
local scratch = require 'tests.support.scratch'

local args = options.read('A job of a worker, compared with the plain command.', {
  { '--checkpoint', 'folder', default = 'models/mini', help = 'folder of LatentSync or the small model' },
  { '--size', 'int', default = 64, help = 'size of a face image in pixels' },
  { '--seconds', 'number', default = 2, help = 'length of the clip in seconds' },
  { '--steps', 'int', default = 3, help = 'of sampling' },
  { '--pairs', 'int', default = 5, min = 1, help = 'number of alternating pairs of runs' },
})
local lacks = clouds.lacks_redis()
if lacks then
  print(lacks)
  return
end

local VIDEO, SOUND = cr.root .. '/models/mini/demo.mp4', cr.root .. '/models/mini/demo.flac'
local root = scratch.path 'root'
files.make_folder(root)
scratch.write('root/v.mp4', files.read(VIDEO))
scratch.write('root/a.flac', files.read(SOUND))
local port = clouds.free_port()
clouds.redis(port, scratch.path 'redis')

local function bare()
  local report, began = scratch.path 'report.json', now()
  local r = child.run { 'lipsync', '--video', VIDEO, '--audio', SOUND, '--out', scratch.path 'bare.mp4', '--checkpoint', args.checkpoint,
    '--size', tostring(args.size), '--device', 'cpu', '--duration', tostring(args.seconds), '--steps', tostring(args.steps), '--quiet',
    '--report', report }
  if r.code ~= 0 then error(r.err) end
  local load = json.decode(files.read(report)).stages.load
  return { seconds = now() - began, processor = r.processor, load = load and load.working_seconds or 0 }
end

-- CPU seconds of a process and its children.
local function spent(pid)
  local user, system = files.read(('/proc/%d/stat'):format(pid)):match('%) %S' .. (' %-?%d+'):rep(10) .. ' (%d+) (%d+)')
  local sum = (user + system) / 100
  for one in files.read(('/proc/%d/task/%d/children'):format(pid, pid)):gmatch '%d+' do sum = sum + spent(tonumber(one)) end
  return sum
end

local function median(list, name)
  local values = {}
  for i, one in ipairs(list) do values[i] = one[name] end
  table.sort(values)
  return values[math.floor((#values + 1) / 2)]
end

cr.run(function()
  local client = redis.new { host = '127.0.0.1', port = port }
  local worker = clouds.start(("'%s' worker --queue 'redis://127.0.0.1:%d/0?stream=films&group=g' --checkpoint '%s' --size %d --device cpu")
    :format(child.program, port, args.checkpoint, args.size) .. (" --root '%s' --scratch '%s'"):format(root, scratch.folder))
  local function job(id)
    local before, began = spent(worker.pid), now()
    client:ask('XADD', 'films', '*', 'job', json.encode {
      id = id, video = 'file://' .. root .. '/v.mp4', audio = 'file://' .. root .. '/a.flac', out = 'file://' .. root .. '/',
      settings = { duration = args.seconds, steps = args.steps },
    })
    repeat cr.sleep(0.01) until client:ask('XLEN', 'films') == 0
    return { seconds = now() - began, processor = spent(worker.pid) - before }
  end
  worker:line '"event":"started"'
  job 'first' -- (this loads the model)
  local bares, jobs = {}, {}
  for i = 1, args.pairs do
    bares[i] = bare()
    jobs[i] = job('job' .. i)
    assert(files.read(('%s/job%d.mp4'):format(root, i)) == scratch.read(scratch.path 'bare.mp4'), 'the results differ')
  end
  worker:stop()
  print(('%d frames, medians of %d pairs      seconds   CPU seconds'):format(args.seconds * 25, args.pairs))
  print(('the command                       %9.2f %9.2f'):format(median(bares, 'seconds'), median(bares, 'processor')))
  print(('  of which it loads the model     %9.2f'):format(median(bares, 'load')))
  print(('a job of the worker               %9.2f %9.2f'):format(median(jobs, 'seconds'), median(jobs, 'processor')))
end)
