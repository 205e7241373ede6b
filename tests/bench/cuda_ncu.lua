-- Every kernel of one UNet step (with guidance, 16 frames), measured by Nsight Compute in the order of the step, with
-- warm caches: calls, time, memory traffic, share; kernels with the same name are summed. cuda_kernels.lua is quicker
-- and knows what each operation computes; this one separates kernels and measures the actual memory traffic.
--
--     build/crescent tests/bench/cuda_ncu.lua [--size 256,512] [--rows 60] [--quant fp8|FILE.lua] [--ncu PATH]
--
-- The program runs itself under ncu, one step without graph recording. It needs permission to read the GPU's counters
-- (root).

local cr = require 'cr'

local o = require 'tests.bench.options'.read('Every kernel of a UNet step.', {
  { '--size', default = '256,512', help = 'pixels' },
  { '--rows', 'int', default = 60, min = 1, help = 'number of rows of the table' },
  { '--quant', help = 'quantization: fp8 or a recipe FILE.lua' },
  { '--ncu', 'file', default = 'ncu', help = "Nsight Compute's program" },
  { '--child', 'int', help = 'internal: the size for the profiled process' },
})
require 'tests.bench.card' ()

local MEMORY = require 'cr.tools.profile'.limits.memory

-- ---- the profiled process ----

if o.child then
  local ffi = require 'ffi'
  local measure = require 'models.laboratory.measure'
  ffi.cdef 'int cuProfilerStart(void); int cuProfilerStop(void);'
  local driver = ffi.load 'libcuda.so.1'
  cr.scope(function()
    local model = measure.random { device = 'cuda', dtype = 'f16', vae = false }
    if o.quant then require 'models.quantize.apply'.recipe(model, o.quant, 'cuda') end
    local c, side = model.unet.config, o.child / 8
    local function randn(...) return cr.randn(..., { dtype = 'f16', device = 'cuda' }) end
    local d = model.unet:denoiser { cond = randn { 1, 16, side, side, c.in_channels - c.out_channels },
      audio = randn { 16, 50, c.cross_attention_dim }, guidance = 1.5, timesteps = { 981, 481, 1 }, record = false }
    local x = randn { 1, 16, side, side, c.out_channels }
    for i = 1, 3 do
      cr.cuda.synchronize()
      if i == 3 then driver.cuProfilerStart() end
      d:call(x, 2):free()
      cr.cuda.synchronize()
    end
    driver.cuProfilerStop()
  end)
  os.exit(0)
end

-- ---- the process that runs ncu ----

-- The fields of a line of CSV, all quoted.
local function fields_of(line)
  local fields = {}
  for text in line:gmatch '"(.-)",?' do fields[#fields + 1] = text end
  return fields
end

local function short(name)
  name = name:gsub('^void ', ''):gsub('%(.*$', ''):gsub('cutlass_%d+_', '')
  local head = name:match '^[%w_:]+'
  return #name <= 90 and name or head and #head > 12 and name:sub(1, 88) .. '..' or name:sub(1, 90)
end

local function read(path)
  local columns, rows, by_name, first = nil, {}, {}, nil
  for line in io.lines(path) do
    if line:find '^"ID"' then
      columns = {}
      for i, field in ipairs(fields_of(line)) do columns[field] = i end
    elseif columns and line:find '^"%d' then
      local f = fields_of(line)
      local function number(name) return tonumber((f[columns[name]]:gsub(',', ''))) or 0 end
      local name = short(f[columns['Kernel Name']])
      local row = by_name[name]
      if not row then
        row = { name = name, calls = 0, ns = 0, bytes = 0 }
        by_name[name] = row
        rows[#rows + 1] = row
      end
      row.calls, row.ns = row.calls + 1, row.ns + number 'gpu__time_duration.sum'
      row.bytes = row.bytes + number 'dram__bytes.sum'
    elseif not columns and not first and line:find '==ERROR==' then
      first = line
    end
  end
  if #rows == 0 then error('ncu reported no kernels: ' .. (first or 'see ' .. path), 0) end
  table.sort(rows, function(a, b) return a.ns > b.ns end)
  return rows
end

local program = require 'lfs'.symlinkattributes('/proc/self/exe', 'target')
for size in o.size:gmatch '%d+' do
  local log = os.tmpname()
  local command = ("%s --profile-from-start off --clock-control none --cache-control none --csv --page raw --print-units base "
    .. "--metrics gpu__time_duration.sum,dram__bytes.sum --log-file '%s' '%s' '%s' --child %s%s"):format(o.ncu, log, program,
    arg[0], size, o.quant and " --quant '" .. o.quant .. "'" or '')
  local status = os.execute(command)
  local ok, rows = pcall(read, log)
  os.remove(log)
  if not ok then error(('%s (status %s of: %s)'):format(rows, tostring(status), command), 0) end
  local sum = { calls = 0, ns = 0, bytes = 0 }
  for _, r in ipairs(rows) do sum.calls, sum.ns, sum.bytes = sum.calls + r.calls, sum.ns + r.ns, sum.bytes + r.bytes end
  print(('\n%s px: %d kernels, %.3f ms, %.2f GB of memory traffic, which alone takes %.3f ms'):format(size, sum.calls, sum.ns * 1e-6,
    sum.bytes * 1e-9, sum.bytes / MEMORY * 1e3))
  print '  calls   us each       ms  share    GB/s  % of memory  kernel'
  for i = 1, math.min(#rows, o.rows) do
    local r = rows[i]
    print(('  %5d %9.1f %8.3f %5.1f%% %7.0f %12.0f  %s'):format(r.calls, r.ns / r.calls * 1e-3, r.ns * 1e-6, 100 * r.ns / sum.ns,
      r.bytes / r.ns, 100 * r.bytes / r.ns * 1e9 / MEMORY, r.name))
  end
end
