--- Examples of help: each line runs and gives what it says; operations, and what a laboratory asks for, have one.

local t = require 'tests.support.tap'
local cr = require 'cr'
local help = require 'cr.tools.help'
local lines = require 'cr.tools.help_lines'

local by_name = lines.by_name()

local function number(v)
  if v ~= v then return 'nan' end
  if v == math.huge or v == -math.huge then return v > 0 and 'inf' or '-inf' end
  return (('%.3g'):format(v):gsub('^%-0$', '0'))
end

local function shown(v)
  if cr.is_tensor(v) then v = v:tolist() end
  if type(v) ~= 'table' then return type(v) == 'number' and number(v) or tostring(v) end
  local parts, nested = {}, false
  for i, one in ipairs(v) do
    parts[i], nested = shown(one), nested or type(one) ~= 'number' and type(one) ~= 'boolean'
  end
  return table.concat(parts, nested and '; ' or ' ')
end

-- What code gives, as the lines have it.
local function result_of(code)
  local results = { setfenv(assert(loadstring('return ' .. code)), lines.values())() }
  for i, v in ipairs(results) do results[i] = shown(v) end
  return table.concat(results, ' / ')
end

t.test('each line gives what help says that it gives', function()
  local count, compared = 0, 0
  for name, line in pairs(by_name) do
    cr.scope(function()
      local ok, result = pcall(result_of, line.code)
      t.ok(ok, ('%s: %s: %s'):format(name, line.code, tostring(result)))
      if line.result ~= '' then
        t.equal(result, line.result, name)
        compared = compared + 1
      end
    end)
    count = count + 1
  end
  local _, written = lines.lines:gsub('\n', '\n')
  t.equal(count, written, 'no name twice')
  t.ok(compared > 200, compared .. ' results')
end)

-- The operations for which the prompt's help is requested, by kind.
local ASKED = [[
index_select gather masked_fill nonzero where cr.where add_ sub_ mul_ div_ zero_ clamp_ lerp cr.zeros_like cr.ones_like cr.full_like
cr.rand_like cr.randn_like cr.empty_like cr.eye cr.linspace cr.randint cr.randperm normal_ uniform_ size repeat_ tile chunk split unbind
flip roll movedim cr.stack sign atan2 log2 log1p expm1 isnan isinf isfinite nan_to_num softplus leaky_relu mish log_softmax softmax
logical_and logical_or any all equal allclose prod norm median quantile logsumexp min max min_at max_at argmin argmax cumsum sort argsort
topk histc diff std var cr.einsum dot outer bmm diag tril triu cr.rfft cr.irfft nn.conv1d nn.conv_transpose2d nn.avg_pool2d nn.rms_norm
nn.embedding nn.grid_sample nn.pixel_shuffle nn.pad nn.interpolate nn.attention nn.mse_loss nn.l1_loss nn.ssim float half bfloat16 long
bool cpu cr.lincomb
]]

t.test('what is asked for has help, with its line', function()
  for name in ASKED:gmatch '%S+' do
    local text, found, near = help.text(name:find '%.' and name or 'x:' .. name)
    local line = by_name[name]
    if t.ok(found and not near and line, name .. ' has no help or no line') then
      -- (help breaks long lines)
      t.ok(text:gsub('%s+', ' '):find(line.code:gsub('%s+', ' '), 1, true), name .. ': help is without its line')
    end
  end
end)

t.test('methods of sampling, and their options, have help by their names', function()
  local names = [[apg cfgpp zero_star pag fora deepcache tea dpmpp_2s_ancestral dpmpp_sde kdpm2 sa_solver er_sde res_multistep
    gradient_estimation restart ddim euler_ancestral cr.kernel cr.fuse cuda.source guidance.new guidance.wrap cache.plan cache.wrap
    schedulers.load solver.class solver.extend sample:compare sample:diff cr.save cr.load]]
  for name in names:gmatch '%S+' do
    local text, found, near = help.text(name)
    t.ok(found and not near and #text > 60, name)
  end
  local options = { sigmas = 'ddim', timesteps = 'ddim', begin_index = 'ddim', s_noise = 'ddim', eta = 'ddim', momentum = 'apg' }
  for option, method in pairs(options) do
    local text = help.text(option)
    t.ok(text:find(("as in '%s:%s=...'"):format(method, option), 1, true), option .. ': ' .. text)
  end
end)

t.test("operations of the page's table have a line", function()
  local page = assert(io.open(cr.root .. '/lua/README.md')):read '*a'
  local rows = page:match '<!%-%- begin operations %-%->(.-)<!%-%- end operations %-%->'
  for name in rows:gmatch '`([%w_.]+)`' do t.ok(by_name[name], name .. ' has no line in lua/cr/tools/help_lines.lua') end
end)

t.test('names of other programs, settings, commands and files lead to what is here', function()
  local rows = require 'models.latentsync.settings'.schema:describe()
  for asked, wanted in pairs {
    ['torch.tensor'] = '^cr%.tensor%(value', ['torch.mean'] = '^tensor:mean', ['F.interpolate'] = '^nn%.interpolate%(x, options%)',
    ['nn.SiLU'] = '^SiLU is nn%.silu here%..*\nnn%.silu%(x%)', ['torch.nn.LayerNorm'] = 'nn%.layer_norm%(w, x',
    ['torch.fft.fft2'] = 'complex numbers', ['torch.compile'] = 'cr%.graph', ['np.savez'] = '\ncr%.save%(', shape = '^x%.shape: ',
    ['F.scaled_dot_product_attention'] = '^there is no scaled_dot_product_attention: use nn%.attention',
    ['DPM++ 2M Karras'] = 'is dpmpp_2m_karras here', DPMSolverMultistepScheduler = 'is dpmpp_2m here',
    guidance_scale = '^%-%-guidance: a setting', ['--guidance-rescale'] = 'in a session guidance_rescale = ',
    lipsync = '^crescent lipsync: a command\n  Lip%-syncs', scheduler = '^%-%-scheduler: ', size = '^tensor:size',
    ['sample.diff'] = '^sample:diff', json = "^json %(require 'cr%.json'%)", media = '^media %(cr%.media%)',
    [cr.root .. '/scripts/examples/my_guidance.lua'] = 'frequency%-decoupled.*\n  low ',
    [cr.root .. '/scripts/examples/my_cache.lua'] = 'my_cache%.lua: ',
  } do
    local text, found = help.text(asked, rows)
    t.ok(found and text:find(wanted), asked .. ': ' .. text:sub(1, 200))
  end
  local view = help.text 'view'
  t.ok(view:find '^tensor:view' and not view:find '\n  job ', 'what servers have is only a line: ' .. view)
  t.equal(help.text 'x = 3', "no help on 'x = 3': `crescent help modules` lists the modules")
  t.equal(help.text '/nowhere.lua', 'there is no file /nowhere.lua')
end)

t.test('an example is code, and not a text that names the function', function()
  for _, name in ipairs { 'x:gather', 'x:index_select', 'nn.attention' } do
    t.ok(not help.text(name):find('absent.lua', 1, true), name)
  end
end)

t.done()
