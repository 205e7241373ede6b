--- The scheduler laboratory: runs every combination of schedulers, steps, guidance, caches, dtypes, sizes and seeds
--- on one piece of video and sound, and shows them side by side.
--
-- models/laboratory/compare describes the measurements and the output files.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local settings = require 'models.latentsync.settings'

local args = cli.parse(arg, {
  name = 'compare', summary = 'Runs many schedulers and settings on one piece of video, and compares them.',
  options = cli.join(
    settings.schema:only { 'video', 'audio', 'checkpoint' }:options(),
    {
      { '--out', 'file', required = true, metavar = 'DIR', help = 'output folder; finished cells in it are kept' },
      { '--schedulers', 'string', metavar = 'NAME,...', help = "names, .lua files, diffusers' scheduler_config.json",
        default_text = 'ddim', within = settings.schema.by_name.scheduler.within },
      { '--steps', 'string', metavar = 'N,...', help = 'denoising steps', default_text = "20, or the checkpoint's" },
      { '--guidance', 'string', metavar = 'X,...', help = 'guidance scales', default_text = "1.5, or the checkpoint's" },
      { '--seeds', 'string', metavar = 'N,...', help = 'seeds of the initial noise', default_text = '1247' },
      { '--frames', 'string', metavar = 'A:B',
        help = 'instead of --start and --duration: from frame A up to, but without, B, counted from 0 at 25 per second' },
      { '--reference', 'string', default = 'ddim:100', metavar = 'NAME:STEPS', help = 'what the others are compared with, or none' },
      { '--preset', 'choice', choices = { 'report' },
        help = 'whole runs: DDIM 25, 15 and DPM 15, 17, 25 steps at 256 and 512 px; DPM 15 with TF32, with Whisper in ' ..
          '8 and 4 bits, and ours' },
      { '--syncnet', 'file', help = 'SyncNet weights', default_text = "the project's own, if it is there" },
      { '--s3fd', 'file', help = 'sfd_face.pth, to find faces as the reference does', default_text = "MediaPipe's detector" },
      { '--no-syncnet', 'flag', help = 'skip SyncNet' },
    },
    settings.schema:only { 'start', 'duration', 'vae', 'device', 'rng', 'points', 'mask', 'match_colour', 'silence', 'quiet' }:options()),
  positional = {
    { 'axis', 'string', optional = true, many = true,
      help = 'more axes: cache=none,deepcache:3  interval=all,100:800  quant=none,8bit,int4  size=256,512  upscale=none,mouth; any ' ..
        'lipsync setting that affects the faces: guidance_rescale=0,0.7  guidance_method=cfg,apg  audio_overlap=0,2  ' ..
        'match_colour=false,true' },
  },
  epilog = 'Several caches in one cell are joined by +: cache=none,deepcache:3+tea:0.2. Lists of numbers are in brackets, which a ' ..
    "shell needs in quotes: --schedulers 'euler:timesteps=[999,700,400,100],ddim'. A reference has the settings' defaults, except for " ..
    'size, guidance, seed, vae and frames_per_window, which are those of the cell.',
})

local fail = cli.failf

local grid = require 'models.laboratory.compare.grid'
local files = require 'models.laboratory.compare.folder'

local function check_readable(option, path)
  if path then cli.check_readable(option, path) end
  local text = path and files.identity(path)
  if path and not text then fail('%s: %s does not exist', option, path) end
  return text
end

--- Start and length in seconds of the piece, nil for all; and a text that identifies it.
local function piece_of(text)
  if not text then
    local named = {}
    if args.start then named[1] = ('from %g s'):format(args.start) end
    if args.duration then named[#named + 1] = ('%g s long'):format(args.duration) end
    return args.start, args.duration, #named > 0 and table.concat(named, ', ') or 'all'
  end
  if args.start or args.duration then fail '--frames: give it, or --start and --duration, not both' end
  local a, b = text:match '^(%d+):(%d+)$'
  if not a then fail("--frames: '%s' is not of the form A:B, as in 0:50", text) end
  if tonumber(b) <= tonumber(a) then fail('--frames: %s ends before it begins', text) end
  return tonumber(a) / 25, (tonumber(b) - tonumber(a)) / 25, text
end

local SHARED = { vae = true, rng = true, mask = true, match_colour = true, silence = true }

--- The values of the requested axes.
local function values_of(sampling, device)
  local texts = {
    scheduler = args.schedulers or 'ddim', steps = args.steps or tostring(sampling.steps or 20),
    guidance = args.guidance or tostring(sampling.guidance or 1.5), seed = args.seeds or '1247', interval = 'all', cache = 'none',
    upscale = 'none', dtype = device == 'cpu' and 'f32' or 'f16', size = tostring(sampling.size or 256),
  }
  local report = args.preset == 'report'
  if report then
    if args.schedulers or args.steps then fail '--preset report has its own schedulers and steps: leave --schedulers and --steps out' end
    texts.guidance, texts.size, texts.card, texts.quant = args.guidance or '1.7', '256,512', 'none', 'none'
  end
  for _, word in ipairs(args.axis or {}) do
    local name, list = word:match '^([%a_]+)=(.*)$'
    if not name then fail("'%s' is not AXIS=VALUES, as in cache=none,deepcache:3", word) end
    -- A setting can be a shared option or an axis, but not both.
    if SHARED[name] and args[name] ~= nil then fail('%s: give it as an option or as an axis, not as both', name) end
    texts[name] = list
  end
  local values = grid.read(texts)
  for _, dtype in ipairs(values.dtype) do
    if dtype == 'fp8' then
      local there, why = require 'cr.quant'.available(device, 'fp8')
      if not there then fail('dtype: %s', why) end
    end
  end
  if report then
    values.rows = require 'models.laboratory.compare.report'(device)
  else
    for _, text in ipairs(values.quant or {}) do
      local recipe = require 'models.quantize.recipe'.named(text)
      if recipe and recipe.whisper then
        fail("quant: '%s' affects Whisper, whose features all cells share: quantize only unet and vae here (--preset report compares " ..
          'whole runs with Whisper in 8 and 4 bits)', text)
      end
    end
  end
  return values
end

cr.run(function()
  local videos, audios = check_readable('--video', args.video), check_readable('--audio', args.audio)
  check_readable('--syncnet', args.syncnet)
  check_readable('--s3fd', args.s3fd)
  local devices = cr.cuda.choose_all(args.device or 'auto', '--device')
  local device = devices[1]
  local start, duration, piece = piece_of(args.frames)
  local unet, _, sampling = require 'models.latentsync.checkpoint'.unet(args.checkpoint)
  local values = values_of(sampling, device)
  local whole = args.preset == 'report'
  local reference = not whole and grid.reference(args.reference) or nil
  local cells = grid.cells(values, reference)
  local exact = grid.exact_dtype(values.dtype)
  local points, mask = check_readable('--points', args.points), check_readable('--mask', args.mask)

  local folder = files.open(args.out, {
    video = videos, audio = audios, checkpoint = ('%s, %s'):format(args.checkpoint, files.identity(unet)),
    vae = args.vae or "the checkpoint's",
    frames = piece, device = device == 'cpu' and 'processor' or cr.cuda.info(device).name,
    reference = reference and args.reference .. ' in ' .. exact or 'none', rng = args.rng or 'torch', points = points or 'found',
    mask = mask or "LatentSync's", ['match-colour'] = args.match_colour and 'on' or nil,
    cells = whole and 'runs of their own' or 'samples of one piece',
    silence = args.silence ~= 'model' and args.silence or nil, ['seed of encoding'] = tostring(values.seed[1]),
  })
  local comparison = require 'models.laboratory.compare.run'.new(folder, cells, {
    video = args.video, audio = args.audio, checkpoint = args.checkpoint, vae = args.vae, device = device, devices = devices, start = start,
    duration = duration, points = args.points, mask = args.mask, match_colour = args.match_colour, silence = args.silence,
    rng = settings.rng(args.rng, device),
    seed = values.seed[1], dtypes = values.dtype, whole = whole, published = whole, syncnet = args.syncnet, s3fd = args.s3fd,
    judge = not args.no_syncnet, quiet = args.quiet,
    title = ('%s, %s'):format(args.video:match '[^/]*$', args.audio:match '[^/]*$'),
    subtitle = ('%d cells, %s, %s'):format(#cells, args.checkpoint, folder.settings.device) ..
      (args.frames and ', frames ' .. piece or piece ~= 'all' and ', ' .. piece or ''),
  })
  local failed, problem = comparison:run()
  io.stdout:write(comparison:table())
  if not args.quiet then io.stderr:write(folder.path, '/index.html: open it in a browser\n') end
  if failed > 0 then fail('%d of %d cells failed: %s', failed, #cells, problem) end
end)
