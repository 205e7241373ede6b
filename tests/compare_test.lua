--- `crescent compare`: its cells, its metrics compared with scikit-image's, its output, what it keeps, its errors,
--- and its page in a browser.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local cjson = require 'cjson'
local lfs = require 'lfs'

local FRAMES, path = 6, clip.path

local function read(name) return scratch.read(path(name)) end

-- ---- parts ---------------------------------------------------------------------------------------

t.test('PSNR and SSIM of the mouth agree with scikit-image 0.26', function()
  -- structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True), averaged over
  -- the disk; the images come from the same formula.
  local S = 40
  cr.scope(function()
    local mask, a, b = cr.ones(S, S, 1), cr.empty({ 2, S, S, 3 }, { dtype = 'u8' }), cr.empty({ 2, S, S, 3 }, { dtype = 'u8' })
    local m, p, q = mask:pointer(), a:pointer(), b:pointer()
    local function round_even(v)
      local low = math.floor(v)
      return v - low > 0.5 and low + 1 or v - low == 0.5 and low + low % 2 or low
    end
    for k = 0, 1 do
      for y = 0, S - 1 do
        for x = 0, S - 1 do
          if (x - 19) ^ 2 + (y - 22) ^ 2 <= 100 then m[y * S + x] = 0 end
          for c = 0, 2 do
            local v = round_even(128 + 60 * math.sin(0.31 * x + 0.2 * c + k) + 50 * math.cos(0.23 * y - 0.4 * c))
            local at = ((k * S + y) * S + x) * 3 + c
            p[at], q[at] = v, math.max(0, math.min(255, v + (x * 7 + y * 13 + c * 29 + k * 5) % 31 - 15))
          end
        end
      end
    end
    local metrics = require 'models.latentsync.metrics'
    local mouth = metrics.mouth(mask, 'cpu')
    t.equal(mouth.pixels, 317)
    t.equal(('%d %d %d %d'):format(mouth.top, mouth.left, mouth.height, mouth.width), '8 5 31 31')
    local sums = metrics.sums()
    mouth:add(sums, mouth:cut(a):contiguous(), mouth:cut(b):contiguous())
    metrics.add_latents(sums, cr.tensor { 3, 4 }, cr.tensor { 3, 3 })
    local r = metrics.result(sums)
    t.near(r.psnr, 29.071426802, 1e-4, 'PSNR')
    t.near(r.ssim, 0.907032908, 1e-5, 'SSIM')
    t.near(r.latents, 1 / math.sqrt(18), 1e-12, 'latents')
    local same = metrics.sums()
    mouth:add(same, mouth:cut(a):contiguous(), mouth:cut(a):contiguous())
    r = metrics.result(same)
    t.equal(r.psnr, nil, 'equal pixels')
    t.near(r.ssim, 1, 1e-6)
    mouth:free()
    t.raises(function() metrics.mouth(cr.ones(S, S, 1), 'cpu') end, 'the mask keeps every pixel')
  end)
end)

t.test('sharpness and shimmer', function()
  local detail, image = require 'models.laboratory.detail', require 'cr.image'
  local H, W, sums = 24, 30, {}
  cr.scope(function()
    -- Columns of 100 + a and 100 - a: the Laplacian alternates between -4 a and 4 a.
    local stripes, plain = cr.empty({ H, W, 3 }, { dtype = 'u8' }), cr.full({ H, W, 3 }, 100, { dtype = 'u8' })
    local p = stripes:pointer()
    for i = 0, H * W - 1 do
      for c = 0, 2 do p[3 * i + c] = i % W % 2 == 0 and 107 or 93 end
    end
    local luma, all = image.luma(stripes), cr.ones(H, W, 1)
    detail.add_sharpness(sums, 'stripes', luma, all)
    detail.add_sharpness(sums, 'plain', image.luma(plain), all)
    t.near(detail.sharpness(sums, 'stripes'), 16 * 49, 0.01)
    t.near(detail.sharpness(sums, 'plain'), 0, 0.01)
    t.equal(detail.sharpness(sums, 'nothing'), nil)
    -- An edge in the middle: the flat region is away from it, and there two frames differ by 3.
    local edge = cr.cat({ cr.full({ H, W / 2, 3 }, 60, { dtype = 'u8' }), cr.full({ H, W / 2, 3 }, 160, { dtype = 'u8' }) }, 2)
    local one = image.luma(edge)
    local flat = detail.flat(one)
    local row = {}
    for x = 1, W do row[x] = flat:select(1, 12):narrow(1, x, 1):item() end
    t.equal(table.concat(row), ('1'):rep(11) .. ('0'):rep(8) .. ('1'):rep(11))
    local two = one + 3 + (flat * -1 + 1) * 50
    detail.add_shimmer(sums, 'edge', one, two, flat)
    detail.add_shimmer(sums, 'edge', two, one + 4, flat)
    t.near(detail.shimmer(sums, 'edge'), 2, 1e-4, '3 levels, then 1')
    detail.free(sums)
  end)
end)

t.test('the cells of a grid', function()
  local grid = require 'models.laboratory.compare.grid'
  t.equal(table.concat(grid.split 'ddim, dpmpp_2m:order=3,spacing=trailing,unipc', '|'), 'ddim|dpmpp_2m:order=3,spacing=trailing|unipc')
  local values = grid.read {
    scheduler = 'ddim,dpmpp_2m', steps = '5,10', guidance = '1.5,2', seed = '1247', interval = 'all,100:800',
    cache = 'none,deepcache:3+tea:0.2', dtype = 'f16,f32', size = '256', upscale = 'none',
  }
  local cells = grid.cells(values, grid.reference 'ddim:10')
  -- 2 x 2 x 2 x 2 x 2 x 2 cells, including the two references (one per guidance scale).
  t.equal(#cells, 64)
  local references, ids = 0, {}
  for i, cell in ipairs(cells) do
    t.ok(not ids[cell.id], 'one id each')
    ids[cell.id] = true
    references = references + (cell.is_reference and 1 or 0)
    t.ok((cell.dtype == 'f32') == (i <= 32), 'the most exact dtype first')
    if not cell.is_reference then
      t.ok(ids[cell.reference], 'the reference comes before')
      t.ok(cell.reference:find('g' .. cell.guidance .. '-all-none-f32', 1, true), 'and is plain: ' .. cell.reference)
    end
  end
  t.equal(references, 2)
  t.equal(#grid.cells(values, nil), 64)
  t.equal(#grid.cells(values, grid.reference 'ddim:100'), 66)
  local axes = require 'models.laboratory.compare.axes'
  t.equal(axes.settings({ cache = 'deepcache:3+tea:0.2' }, 'sample').cache, 'deepcache:3,tea:0.2')
  t.equal(table.concat({ grid.precision 'fp8' }, ' '), 'f16 fp8')
  t.equal(table.concat({ grid.precision 'bf16' }, ' '), 'bf16')
  t.equal(grid.exact_dtype { 'fp8', 'bf16', 'f16' }, 'f16')
  grid.label(cells)
  local labels = {}
  for _, cell in ipairs(cells) do labels[cell.label] = true end
  t.ok(labels['dpmpp_2m 5, f16, guidance 2, guided at 100:800, deepcache:3+tea:0.2'], 'labels tell cells apart')

  -- A file is identified by its contents.
  local function id_of(folder, text)
    lfs.mkdir(path(folder))
    local v = grid.read {
      scheduler = child.file(folder .. '/own.lua', text), steps = '3', guidance = '1', seed = '1', interval = 'all', cache = 'none',
      dtype = 'f32', size = '64', upscale = 'none',
    }
    return grid.cells(v)[1].id
  end
  local body = "return require 'cr.schedulers.euler' "
  local one, two, three = id_of('one', body), id_of('two', body), id_of('three', body .. '-- changed')
  t.ok(one:find '^own%.%x+%-3%-', one)
  t.equal(one, two)
  t.ok(one ~= three, 'another file, another cell')

  t.raises(function() grid.read { steps = '5,x' } end, "%-%-steps: 'x' is not a whole number")
  t.raises(function() grid.read { steps = '0' } end, '%-%-steps: 0 is less than 1')
  t.raises(function() grid.read { dtype = 'f8' } end, "dtype: 'f8' is not f32, f16, bf16 or fp8")
  t.raises(function() grid.read { interval = '5' } end, "interval: '5' is not all or A:B")
  t.raises(function() grid.read { chache = 'none' } end, "no axis 'chache': did you mean 'cache'")
  t.raises(function() grid.reference 'ddim' end, 'NAME:STEPS')
  t.raises(function() grid.read { quant = 'none,int3' } end, "quant: there is no recipe 'int3': did you mean 'int4'")
  t.raises(function() grid.read { card = 'tf31=on' } end, "card: a GPU has no option 'tf31': did you mean 'tf32'")
  t.raises(function() grid.read { card = 'tf32' } end, "card: 'tf32' is not of the form OPTION=on")
end)

t.test('the rows of the published table, and formats as an axis', function()
  local grid, report = require 'models.laboratory.compare.grid', require 'models.laboratory.compare.report'
  local texts = { scheduler = 'ddim', steps = '20', guidance = '1.7', seed = '1', interval = 'all', cache = 'none', dtype = 'f16',
    size = '256,512', upscale = 'none', quant = 'none', card = 'none' }
  for device, count in pairs { ['cuda:0'] = 11, cpu = 9 } do
    local values = grid.read(texts)
    values.rows = report(device)
    local cells, seen = grid.cells(values), {}
    t.equal(#cells, 2 * count, device)
    for _, cell in ipairs(cells) do seen[('%s %d %s %s'):format(cell.scheduler, cell.steps, cell.card, cell.quant)] = true end
    t.ok(seen['dpmpp_2m 15 none whisper=int4'] and seen['ddim 25 none none'] and seen['dpmpp_2m 15 none 8bit'], device)
    t.equal(seen['dpmpp_2m 15 tf32=on+fusion=off none'], device ~= 'cpu' or nil)
  end
  texts.quant, texts.card = 'none,8bit,whisper=int8', nil
  local cells = grid.cells(grid.read(texts), grid.reference 'ddim:20')
  t.equal(#cells, 6)
  t.ok(cells[1].is_reference and cells[1].quant == 'none', 'the reference is not quantized')
  local settings = require 'models.laboratory.compare.axes'.settings({ quant = '8bit' }, 'model')
  t.equal(settings.quant, '8bit')
end)

t.test('every setting that affects the faces is an axis; a reference has its default', function()
  local grid, axes = require 'models.laboratory.compare.grid', require 'models.laboratory.compare.axes'
  local by_setting = {}
  for _, axis in ipairs(axes.list) do by_setting[axis.setting or axis.name] = axis end
  for _, row in ipairs(require 'models.latentsync.settings'.schema.rows) do
    if row.stage == 'sample' then t.ok(by_setting[row[1]], row[1] .. ' is an axis') end
  end
  for _, name in ipairs { 'audio_overlap', 'frames_per_window', 'silence', 'smooth', 'match_colour', 'paste', 'quant', 'rng', 'size' } do
    t.ok(by_setting[name], name .. ' is an axis')
  end
  local values = grid.read {
    scheduler = 'ddim', steps = '2', guidance = '1.5', seed = '1', interval = 'all', cache = 'none', dtype = 'f32', size = '64',
    upscale = 'none', guidance_rescale = '0,0.7', guidance_method = 'cfg,apg:eta=0.5,norm=3', audio_overlap = '0,2',
    frames_per_window = '8,16', match_colour = 'false,true',
  }
  local cells = grid.cells(values, grid.reference 'ddim:3')
  t.equal(#cells, 2 ^ 5 + 2, 'a reference of each number of frames in a window')
  local pieces, last = 0, nil
  for _, cell in ipairs(cells) do
    local key = axes.key(cell, 'piece')
    if key ~= last then pieces, last = pieces + 1, key end
    if cell.is_reference then
      t.equal(('%g %s %g %s'):format(cell.guidance_rescale, cell.guidance_method, cell.audio_overlap, cell.match_colour), '0 cfg 2 false')
    else
      t.equal(cell.reference, 'ddim-3-g1.5-all-none-f32-64-s1' .. (cell.frames_per_window == 8 and '-frames_per_window=8' or ''))
    end
  end
  t.equal(pieces, 8, 'what is prepared is prepared once')
  grid.label(cells)
  local found, labels = {}, {}
  for _, cell in ipairs(cells) do found[cell.id], labels[cell.label] = true, true end
  t.ok(found['ddim-2-g1.5-all-none-f32-64-s1'], 'defaults have no place in a name')
  t.ok(found['ddim-2-g1.5-all-none-f32-64-s1-guidance_rescale=0.7-guidance_method=apg~eta=0.5~norm=3-audio_overlap=0'], 'others have')
  t.ok(labels['ddim 2, 8 frames a window, guidance_rescale 0, guidance_method cfg, match_colour true, audio_overlap 2'], 'labels')
  local asked = axes.settings(cells[#cells], 'sample', 'piece')
  t.ok(asked.guidance_rescale and asked.frames_per_window and asked.match_colour ~= nil and asked.guidance_interval == nil)
  t.equal(grid.split 'euler:sigmas=[14,3,0],steps=2,ddim'[1], 'euler:sigmas=[14,3,0],steps=2')
  t.raises(function() grid.read { guidance_rescale = '2' } end, 'guidance_rescale: 2 is more than 1')
  t.raises(function() grid.read { match_colour = 'yes' } end, "match_colour: 'yes' is not true or false")
  t.raises(function() grid.read { guidance_mehtod = 'cfg' } end, "no axis 'guidance_mehtod': did you mean 'guidance_method'")
  t.raises(function() grid.read { points = 'a.json' } end, "no axis 'points'")
end)

-- ---- the command -----------------------------------------------------------------------------------

clip.needs_whisper(t, 'compare')

cr.scope(function()
  clip.checkpoint 'checkpoint'
  clip.video('face.mkv', FRAMES + 2, 96, 128)
  clip.points('points.json', clip.moving(FRAMES + 2, { { 44, 32 }, { 79, 33 }, { 61, 54 } }))
  clip.voice('voice.wav', 0.5)
end)

local function compare(extra, options)
  local args = { 'compare', '--video', path 'face.mkv', '--audio', path 'voice.wav', '--checkpoint', path 'checkpoint',
    '--points', path 'points.json', '--out', path 'lab', '--reference', 'ddim:3', '--device', 'cpu', 'size=64' }
  if not (options and options.judge) then args[#args + 1] = '--no-syncnet' end
  if not (options and options.all) then
    args[#args + 1] = '--frames'
    args[#args + 1] = '2:' .. 2 + FRAMES
  end
  for _, word in ipairs(extra) do args[#args + 1] = word end
  return child.run(args, { after = options and options.after, signal = options and options.signal })
end

local function results() return cjson.decode(read 'lab/results.json') end

local function cell_of(list, scheduler, steps)
  for _, cell in ipairs(list.cells) do
    if cell.scheduler == scheduler and cell.steps == steps then return cell end
  end
end

t.test('a small grid: figures, tables, pictures, clips', function()
  local r = compare { '--schedulers', 'ddim,dpmpp_2m', '--steps', '1' }
  if not t.equal(r.code, 0, r.err) then return end
  t.ok(r.out:find 'ddim %(reference%) +3 ', r.out)
  t.ok(r.err:find '3/3 dpmpp_2m 1: ', r.err)
  local list = results()
  t.equal(#list.cells, 3)
  cr.scope(function()
    local reference = cell_of(list, 'ddim', 3)
    t.ok(reference.is_reference and reference.psnr == nil, 'the reference is not measured against itself')
    local theirs = cr.load(path('lab/cells/' .. reference.id .. '/latents.safetensors')).window1
    t.equal(table.concat(theirs.shape, ' '), ('1 %d 8 8 4'):format(FRAMES))
    for _, scheduler in ipairs { 'ddim', 'dpmpp_2m' } do
      local cell = cell_of(list, scheduler, 1)
      t.equal(cell.reference, reference.id)
      t.equal(cell.frames, FRAMES)
      local mine = cr.load(path('lab/cells/' .. cell.id .. '/latents.safetensors')).window1
      t.near(cell.latents_distance, t.relative_error(mine, theirs), 1e-6, 'latents')
      t.ok(cell.latents_distance > 0.01 and cell.psnr > 5 and cell.psnr < 60 and cell.ssim > 0 and cell.ssim < 1, 'measures')
      t.ok(cell.seconds > cell.sampling_seconds and cell.sampling_seconds >= cell.step_seconds and cell.peak_bytes > 1e6, 'costs')
      local folder = path('lab/cells/' .. cell.id)
      local whole, face = media.probe(folder .. '/clip.mp4'), media.probe(folder .. '/face.mp4')
      t.equal(('%dx%d %s, %dx%d %s'):format(whole.width, whole.height, whole.audio_codec, face.width, face.height, face.video_codec),
        '128x96 aac, 64x64 h264')
      t.equal(face.frames, FRAMES)
    end
    -- The latents equal lipsync's.
    local l = child.run({ 'lipsync', '--video', path 'face.mkv', '--audio', path 'voice.wav', '--checkpoint', path 'checkpoint', '--points',
      path 'points.json', '--size', '64', '--start', '0.08', '--duration', FRAMES / 25, '--scheduler', 'dpmpp_2m', '--steps', '1',
      '--out', path 'out.mkv', '--dump-latents', path 'latents.safetensors', '--device', 'cpu', '--quiet' })
    if t.equal(l.code, 0, l.err) then
      local mine = cr.load(path('lab/cells/' .. cell_of(list, 'dpmpp_2m', 1).id .. '/latents.safetensors')).window1
      t.near(mine:permute(1, 5, 2, 3, 4):contiguous(), cr.load(path 'latents.safetensors').latents, 0, "lipsync's latents")
    end
    local sheet = media.read_picture(path 'lab/contact.png')
    t.ok(sheet:size(1) > 3 * 160 and sheet:size(2) > 6 * 160, 'a row a cell, a column a frame')
  end)
  local _, lines = read('lab/results.csv'):gsub('\r\n', '')
  t.equal(lines, 4)
  t.ok(read 'lab/results.md':find '| ddim %(reference%) | +3 |', read 'lab/results.md')
  t.ok(read 'lab/quality_steps.svg':find 'Mouth: PSNR' and read 'lab/quality_time.svg':find 'seconds of sampling', 'plots')
  local page = read 'lab/index.html'
  local _, clips = page:gsub('<video[^>]* src="data:video/mp4;base64,', '')
  t.equal(clips, 3, 'clips in the page')
  t.ok(not page:find('{{', 1, true), 'every place is filled')
  for source in page:gmatch 'src="([^"]?[^"]?[^"]?[^"]?[^"]?)' do t.equal(source, 'data:', 'nothing from outside') end
end)

t.test('upscaled mouths beside others', function()
  local network = require 'tests.support.checkpoint'.upscaler(path 'upscaler.safetensors')
  local r = compare { '--schedulers', 'ddim', '--steps', '1', 'upscale=none,mouth:' .. network, '--out', path 'enlarged' }
  if not t.equal(r.code, 0, r.err) then return end
  t.ok(r.out:find 'upscale ' and r.out:find 'mouth:upscaler.safetensors', r.out)
  local list, cells = cjson.decode(read 'enlarged/results.json'), {}
  t.equal(#list.cells, 3, 'the reference has no mouth enlarged')
  for _, cell in ipairs(list.cells) do
    if not cell.is_reference then cells[cell.upscale == 'none' and 'none' or 'mouth'] = cell end
  end
  local none, mouth = cells.none, cells.mouth
  t.equal(none.reference, mouth.reference)
  t.equal(none.psnr, mouth.psnr, 'faces are measured as they are decoded')
  local function side(cell) return media.probe(path('enlarged/cells/' .. cell.id .. '/face.mp4')).width end
  t.equal(side(none) .. ' ' .. side(mouth), '64 128', 'faces are shown as they are pasted')
  for name, value in pairs { own_sharpness = true, own_shimmer = true, sharpness = false, shimmer = false } do
    t.ok(none[name] and none[name] > 0, name .. ' is measured')
    t.equal(none[name] == mouth[name], value, name .. (value and ' is the video\'s' or ' is the result\'s'))
  end
  cr.scope(function()
    t.ok(media.read_picture(path 'enlarged/contact.png'):size(2) > 6 * 320, 'pictures are large enough to tell')
  end)
  t.ok(read 'enlarged/index.html':find 'ddim 1, upscale mouth:upscaler.safetensors', 'the page says so')
end)

t.test('settings of the preparation and of the sampling as axes', function()
  local r = compare { '--schedulers', 'ddim', '--steps', '1', 'frames_per_window=4,16', 'guidance_method=cfg,apg:norm=0.1', '--out',
    path 'settings' }
  if not t.equal(r.code, 0, r.err) then return end
  local list, seen = cjson.decode(read 'settings/results.json'), {}
  t.equal(#list.cells, 6, 'two references')
  for _, cell in ipairs(list.cells) do
    t.ok(cell.finished, cell.label)
    t.equal(cell.windows, cell.frames_per_window == 4 and 2 or 1, cell.label)
    if not cell.is_reference then seen[cell.frames_per_window .. cell.guidance_method] = cell.latents_distance end
  end
  for _, frames in ipairs { '4', '16' } do
    t.ok(math.abs(seen[frames .. 'cfg'] - seen[frames .. 'apg:norm=0.1']) > 1e-6, 'another method, another result')
  end
  t.ok(r.out:find 'guidance_method' and r.out:find 'apg:norm=0.1', r.out)
  t.ok(read 'settings/results.csv':find 'upscale,frames_per_window,', 'columns of what was asked for')
end)

t.test('finished cells are kept; a failing cell does not stop the others', function()
  local kept = path('lab/cells/' .. cell_of(results(), 'dpmpp_2m', 1).id)
  local before = lfs.attributes(kept .. '/clip.mp4', 'ino')
  local bad = child.file('bad.lua', "return { new = function() return { timesteps = { 500 }, step = function() end } end }")
  local r = compare { '--schedulers', bad .. ',dpmpp_2m,euler', '--steps', '1', '--quiet' }
  t.equal(r.code, 1)
  t.ok(r.err:find '1 of 4 cells failed: bad.lua 1: scheduler .*bad.lua: step returned nothing at timestep 500', r.err)
  t.equal(r.lines, 1, r.err)
  t.equal(lfs.attributes(kept .. '/clip.mp4', 'ino'), before, 'not made again')
  local list = results()
  t.ok(cell_of(list, 'euler', 1).finished and cell_of(list, 'euler', 1).ssim, 'the one after it is made, and measured')
  t.ok(not cell_of(list, bad, 1).finished and cell_of(list, bad, 1).problem, 'the other is not')
  -- All cells are finished, so nothing is computed.
  r = compare { '--schedulers', 'dpmpp_2m,ddim', '--steps', '1' }
  t.equal(r.code, 0, r.err)
  t.ok(r.err:find '^3 of 3 cells are already finished' and not r.err:find 'load', r.err)
end)

t.test('a cell with non-finite values is marked as failed, with the reason', function()
  local blow = child.file('blow.lua', [[
    return { new = function()
      return { timesteps = { 900, 400 }, step = function(_, prediction, at, x)
        return at < 500 and x / 0 or x - prediction * 0.1
      end }
    end }]])
  local r = compare { '--schedulers', blow .. ',ddim', '--steps', '1' }
  t.equal(r.code, 1)
  local reason = 'step 2 of 2 of .-blow.lua is not finite: its prediction is, but not what the scheduler makes of it'
  t.ok(r.err:find('blow.lua 1: [^\n]*' .. reason), r.err)
  t.ok(r.err:find('1 of 3 cells failed: blow.lua 1: [^\n]*' .. reason), r.err)
  t.ok(r.out:find 'blow.lua +1 +failed', r.out)
  local list = results()
  local cell = cell_of(list, blow, 1)
  t.ok(not cell.finished and cell.problem:find(reason) and not cell.psnr, cell.problem)
  t.ok(not lfs.attributes(path('lab/cells/' .. cell.id .. '/clip.mp4')), 'no clip of it')
  t.ok(cell_of(list, 'ddim', 1).psnr, 'the others have their figures')
  for _, name in ipairs { 'results.md', 'results.csv', 'index.html' } do
    t.ok(read('lab/' .. name):find(reason), name)
  end
end)

t.test('Ctrl-C keeps finished cells', function()
  local slow = child.file('slow.lua', [[
    return { new = function()
      return { timesteps = { 500 }, step = function() io.write 'ready\n' io.flush() require 'cr'.sleep(60) end }
    end }]])
  local r = compare({ '--schedulers', 'heun,' .. slow, '--steps', '1' }, { after = 'ready', signal = 'sigint' })
  t.equal(r.code, 130, r.err)
  t.ok(r.err:find '2 of 3 cells are finished in .*lab: run the same command to continue\ncrescent: interrupted\n$', r.err)
  local list = results()
  t.ok(cell_of(list, 'heun', 1).finished and not cell_of(list, slow, 1).finished, 'results.json knows')
  for name in lfs.dir(path 'lab') do t.ok(name:sub(1, 1) ~= '.' or #name <= 2, 'nothing half-written: ' .. name) end
end)

t.test('bad input', function()
  local function says(extra, pattern, options)
    local r = compare(extra, options)
    t.equal(r.lines, 1, r.err)
    t.ok(r.code ~= 0 and r.err:find(pattern), r.err)
  end
  says({}, 'lab was made with other settings %(frames is all, was 2:8%): choose another folder', { all = true })
  says({ '--reference', 'none' }, 'other settings %(reference is none, was ddim:3 in f32%)')
  says({ '--out', child.folder }, 'holds other files .* and no comparison')
  says({ '--schedulers', 'dpmp_2m' }, "no scheduler 'dpmp_2m': did you mean")
  says({ 'upscale=frame:2' }, "upscale: 'frame:2' is not none or mouth")
  says({ 'upscale=none,mouth:x4plos' }, "no network 'x4plos': did you mean 'x4plus'")
  says({ 'cahce=none' }, "no axis 'cahce': did you mean 'cache'")
  says({ 'match_colour=true', '--match-colour' }, 'match_colour: give it as an option or as an axis, not as both')
  says({ 'guidance_method=apgg' }, "no guidance method 'apgg': did you mean apg")
  says({ 'cache=depcache:3' }, "no cache 'depcache'")
  says({ 'quant=none,whisper=int8' }, "quant: 'whisper=int8' affects Whisper")
  says({ '--syncnet', path 'points.json' }, 'points.json', { judge = true })
  says({ '--frames', '5:5' }, 'ends before it begins')
  says({ '--frames', '2:8', '--duration', '1' }, '^crescent: %-%-frames: give it, or %-%-start and %-%-duration, not both')
  says({ '--preset', 'report', '--steps', '3' }, 'has its own schedulers and steps')
  says({ 'dtype=fp8', '--device', 'cpu' }, 'dtype: fp8 needs an NVIDIA GPU')
end)

t.test('a whole run as a cell', function()
  cr.run(function()
    local whole = require 'models.laboratory.compare.whole'
    local folder = require 'models.laboratory.compare.folder'.open(path 'whole', { of = 'this test' })
    local cell = { id = 'one', scheduler = 'dpmpp_2m', steps = 2, steps_made = 2, calls = 2, guidance = 1.7, interval = 'all',
      cache = 'deepcache:2', dtype = 'f32', size = 64, seed = 1247 }
    local o = { video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', points = path 'points.json',
      device = 'cpu', start = 0.08, duration = 0.16, rng = 'torch-cpu' }
    t.equal(folder:result(cell), nil)
    local result = whole.make(cell, folder, o)
    t.equal(result.frames, 4)
    t.ok(result.seconds > result.sampling_seconds and result.sampling_seconds > result.step_seconds, 'seconds')
    t.ok(result.peak_bytes > 1e7, 'memory')
    local report = cjson.decode(read 'whole/cells/one/report.json')
    t.equal(('%s %d %g %s'):format(report.settings.scheduler, report.settings.steps, report.settings.guidance, report.settings.cache),
      'dpmpp_2m 2 1.7 deepcache:2')
    folder:finish(cell, result)
    t.equal(folder:result(cell).frames, 4, 'kept')
    cell.id, o.video = 'two', path 'none.mkv'
    t.raises(function() whole.make(cell, folder, o) end, '^%-%-video: .*none.mkv')
  end)
end)

-- ---- the page ----------------------------------------------------------------------------------------

local function browser(args)
  local list = { '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--user-data-dir=' .. path 'profile',
    '--autoplay-policy=no-user-gesture-required' }
  for _, word in ipairs(args) do list[#list + 1] = word end
  return child.run(list, { program = 'chromium' })
end

-- The images of the clips are colourful, the rest of the page is nearly grey.
local function colourful_pixels()
  local shot = media.read_picture(path 'page.png')
  t.equal(table.concat(shot.shape, ' '), '1000 1200 3')
  local p, colourful = shot:pointer(), 0
  for i = 0, 1200 * 1000 - 1 do
    local a, b, c = p[3 * i], p[3 * i + 1], p[3 * i + 2]
    if math.max(a, b, c) - math.min(a, b, c) > 60 then colourful = colourful + 1 end
  end
  return colourful
end

-- Only with a browser, which `make deps` does not install.
local in_browser = os.execute 'command -v chromium >/dev/null 2>&1' == 0 and t.test or function() end
in_browser('the page in a browser', function()
  local _, clips = read('lab/index.html'):gsub('<video', '')
  local url = 'file://' .. path 'lab/index.html'
  -- On a busy machine it loads and plays later.
  local r, loaded, spread
  for k = 0, 4 do
    r = browser { ('--timeout=%d'):format(1500 * 4 ^ k), '--dump-dom', url .. '#play' }
    loaded, spread = r.out:match 'data%-loaded="(%d+)"', tonumber(r.out:match 'data%-spread="([%d.]+)"' or nil)
    if loaded == tostring(clips) and spread and spread < 0.1 then break end
  end
  t.equal(loaded, tostring(clips), 'clips that a browser can decode')
  t.ok(spread and spread < 0.1, ('clips play %s s apart'):format(tostring(spread)))
  t.ok(r.out:find('>Pause<', 1, true), 'it plays')
  local colourful
  for k = 0, 4 do
    browser { ('--timeout=%d'):format(1500 * 4 ^ k), '--window-size=1200,1000', '--screenshot=' .. path 'page.png', url }
    if not t.ok(read 'page.png', 'a screenshot') then return end
    colourful = cr.scope(colourful_pixels)
    if colourful > 20000 then break end
  end
  t.ok(colourful > 20000, ('%d colourful pixels: the clips show'):format(colourful))
end)

t.test('the reason why lips are not evaluated is printed once for all cells', function()
  t.fetched 'face/face_landmark.tflite'
  local r = compare({ '--schedulers', 'ddim', '--steps', '1,2', '--out', path 'unjudged' }, { judge = true })
  if not t.equal(r.code, 0, r.err) then return end
  local _, cells = r.err:gsub('%d/3 ddim %d+: [%d.]+ s', '')
  local _, told = r.err:gsub('; not judged: no face can be followed for more than', '')
  t.equal(cells .. ' ' .. told, '3 1', r.err)
end)

child.clean()
t.done()
