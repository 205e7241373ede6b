--- Makes the face of a video say what a voice says.
--
-- The pipeline itself is `sync` below, one screen; the rest is options, report and errors. Work in
-- memory is a window of frames and a batch of decoded ones, whatever the length of the video.

local cr = require 'cr'
local clock = require 'cr.clock'
local started = clock()
local cli = require 'cr.tools.cli'

local args = cli.parse(arg, {
  name = 'lipsync', summary = 'Makes the face of a video say what a voice says.',
  options = {
    { '--video', 'file', required = true, help = 'video with the face' },
    { '--audio', 'file', required = true, help = 'voice: a sound file, or a video with sound' },
    { '--out', 'file', required = true, help = 'video to write; its ending picks the container' },
    { '--checkpoint', 'file', required = true, metavar = 'DIR', help = 'folder with latentsync_unet.pt, whisper/, vae/' },
    { '--vae', 'file', metavar = 'DIR', help = 'diffusers folder of the VAE', default_text = 'CHECKPOINT/vae' },
    { '--size', 'int', unit = 'pixels', help = 'side of the face picture', default_text = "the checkpoint's, else 256" },
    { '--frames-per-window', 'int', default = 16, min = 1, unit = 'frames', help = 'how many are made together' },
    { '--steps', 'int', min = 1, max = 1000, help = 'denoising steps', default_text = "20, or the checkpoint's" },
    { '--guidance', 'number', help = 'weight of the sound; 1: no guidance',
      default_text = "1.5, or the checkpoint's" },
    { '--guidance-interval', 'string', metavar = 'A:B', help = 'guide only at timesteps from A to B', default_text = '0:999, all' },
    { '--guidance-rescale', 'number', default = 0, min = 0, max = 1, help = "share of guidance's excess deviation that is taken back" },
    { '--guidance-off-last', 'int', default = 0, min = 0, unit = 'steps', help = 'at the end without guidance' },
    { '--cache', 'string', metavar = 'NAME:...', help = 'over steps: deepcache:INTERVAL[:BRANCH], tea:THRESHOLD; both with a comma',
      default_text = 'none' },
    { '--seed', 'int', default = 1247, min = -1, help = 'of the random numbers; -1: a random one, printed' },
    { '--scheduler', 'string', metavar = 'NAME|FILE', help = "sampling method: a name, a .lua file, or diffusers' scheduler_config.json",
      default_text = "the checkpoint's, else ddim" },
    { '--device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, help = 'of the weights',
      default_text = 'f16 on a GPU, f32 on a CPU' },
    { '--quant', 'string', metavar = 'fp8|FILE', help = "the UNet's products in 8-bit floats: faster, less exact; FILE.lua: your own list",
      default_text = 'none' },
    { '--rng', 'choice', default = 'torch', choices = { 'torch', 'torch-cpu', 'torch-cuda', 'philox' },
      help = 'random numbers' },
    { '--points', 'file', help = 'JSON with three face points per frame, instead of detection' },
    { '--smooth', 'flag', negatable = true,
      help = 'steady the points over frames (default on; off with --points)' },
    { '--no-face', 'choice', default = 'keep', choices = { 'keep', 'hold', 'error' },
      help = 'a frame without a face: pass on, reuse the last place for 12 frames, or stop' },
    { '--mask', 'file', metavar = 'PICTURE', help = 'white keeps, black is made anew', default_text = "LatentSync's" },
    { '--paste', 'choice', default = 'region', choices = { 'region', 'reference' },
      help = 'return the mouth, or the whole crop' },
    { '--start', 'number', default = 0, min = 0, metavar = 'S', unit = 'seconds', help = 'where to begin in video and sound' },
    { '--duration', 'number', metavar = 'S', unit = 'seconds', help = 'how much to do', default_text = 'all' },
    { '--tail', 'choice', default = 'cut', choices = { 'cut', 'keep' },
      help = 'video after the sound: leave out, or keep' },
    { '--audio-overlap', 'number', default = 0, min = 0, max = 15, metavar = 'S', unit = 'seconds',
      help = "of the sound's 30 s segments; 0: as LatentSync" },
    { '--codec', 'string', metavar = 'NAME', help = "FFmpeg's video encoder", default_text = 'libx264' },
    { '--crf', 'int', default = 18, min = 0, max = 63, help = "encoder's quality, less is better" },
    { '--lossless', 'flag', help = 'FFV1 in RGB, in Matroska' },
    { '--dump-latents', 'file', help = 'safetensors of the final latents [1 4 F h w]' },
    { '--report', 'file', help = 'JSON with the seconds of each stage (waiting included, and at work), settings, versions' },
    { '--no-label', 'flag', help = 'leave out of the metadata that AI made the video' },
    { '--quiet', 'flag', help = 'no progress' },
  },
})

local LABEL = 'The lips in this video were made by AI (Crescent).'

local function fail(...) cli.fail((...):format(select(2, ...))) end

-- ---- options that need more than a type ------------------------------------------------------

--- The scheduler that was asked for, or the checkpoint's.
local function scheduler_of(steps)
  local spec = args.scheduler or require 'models.latentsync.checkpoint'.scheduler(args.checkpoint) or 'ddim'
  local ok, result = pcall(require 'cr.schedulers'.load, spec, { steps = steps })
  if not ok then fail('%s', result) end
  return result
end

--- Guidance and caches around the network, as the options ask: {wrap, counts of steps by kind, settings}.
local function method_of()
  local low, high = (args.guidance_interval or '0:999'):match '^(%d+%.?%d*):(%d+%.?%d*)$'
  if not low then fail("--guidance-interval: '%s' is not of the form A:B, as in 100:800", args.guidance_interval) end
  local guidance, cache = require 'cr.guidance', require 'cr.cache'
  local settings = {
    scale = args.guidance, rescale = args.guidance_rescale, off_last = args.guidance_off_last,
    interval = args.guidance_interval and { tonumber(low), tonumber(high) } or nil,
  }
  local method = { counts = {}, settings = settings }
  local ok, err = pcall(function()
    local g, plan = guidance.new(settings), args.cache and cache.plan(args.cache)
    function method.wrap(unet) return guidance.wrap(cache.wrap(unet, plan, method.counts), g) end
  end)
  if not ok then fail('%s', err) end
  return method
end

--- Which layers are to be quantized; nil: none.
local function quant_of(device)
  if not args.quant then return nil end
  local ok, list = pcall(require 'models.networks.unet3d_fp8'.named, args.quant)
  if not ok then fail('--quant: %s', list) end
  local there, why = require 'cr.fp8'.available(device)
  if not there then fail('--quant: %s', why) end
  return list
end

--- {points of frame 1, ...}, false where the file says null.
local function read_points(path)
  local f, reason = io.open(path, 'rb')
  if not f then fail('--points: %s', reason) end
  local text = f:read '*a'
  f:close()
  local cjson = require 'cjson'
  local ok, list = pcall(cjson.decode, text)
  if not ok or type(list) ~= 'table' then
    fail('--points: %s is not JSON of the form [[[x,y],[x,y],[x,y]], ...]', path)
  end
  local points = {}
  for i, entry in ipairs(list) do
    if entry == cjson.null then
      points[i] = false
    else
      local good = type(entry) == 'table' and #entry == 3
      for k = 1, 3 do
        local p = good and entry[k]
        good = type(p) == 'table' and #p == 2 and type(p[1]) == 'number' and type(p[2]) == 'number'
      end
      if not good then fail('--points: %s: entry %d is neither three points [x,y] nor null', path, i) end
      points[i] = entry
    end
  end
  if #points == 0 then fail('--points: %s holds no frames', path) end
  return points
end

--- A seed from the system, small enough to be typed again.
local function random_seed()
  local f = io.open('/dev/urandom', 'rb')
  local a, b, c, d = f:read(4):byte(1, 4)
  f:close()
  return a + b * 2 ^ 8 + c * 2 ^ 16 + d % 128 * 2 ^ 24
end

-- ---- the pipeline ----------------------------------------------------------------------------

--- Latents of all windows, kept only if they are asked for.
local dumped = {}

--- How the network is asked; set before sync runs.
local method

--- Seconds from the start to the end of the first step.
local first_step

--- The steps are queued by this thread too. One waits on the card while another runs, so that tasks beside them
--- may keep the thread for less than a step takes: this long after one was queued, in seconds, and a frame more.
local TURN = 0.005

--- Steps of a window that are queued before the one before has left the card.
local AHEAD = 2

--- When the last step was queued.
local step_queued = 0

--- A function for a task to call between its pieces of work, so that the steps get their turn.
local function give_way(device)
  return function()
    if device ~= 'cpu' and clock() - step_queued >= TURN then cr.yield() end
  end
end

--- Four tasks side by side: finding faces, making them anew and putting them back, a window apart, and encoding
--- each frame as it is done. On a card the first and the third have a stream of their own, so that it never waits
--- for them; the second queues window after window, and nobody waits for the card but to put faces back.
local function sync(model, session, scheduler, sink, progress)
  local latentsync = require 'models.latentsync'
  -- The next window is found while one is made, and no further one: its frames take memory.
  local found, made = cr.channel(0), cr.channel(1)
  local finished = cr.channel(args.frames_per_window)
  local BESIDE = 1
  local function beside()
    if model.device ~= 'cpu' then cr.cuda.stream(BESIDE) end
  end

  local function find()
    beside()
    for clip in function() return session:next() end do found:put(clip) end
    found:close()
  end

  -- The new faces of a window and marks of the ends of its steps and of all of it; `before`: of the window before.
  local function make(clip, before)
    return cr.scope(function()
      local cond, hear = model:condition(clip), model:listen(clip)
      clip.faces:free()
      local unet = method.wrap(model:denoiser(cond, hear, { guidance = args.guidance, timesteps = scheduler.timesteps }))
      local x = scheduler:start(model:noise(clip))
      scheduler:reset()
      progress:measure('denoise', clip.n, function()
        for i, t in ipairs(scheduler.timesteps) do
          x = scheduler:step(unet:call(x, i), t, x)
          step_queued = clock()
          if not first_step then
            model:wait()
            first_step = clock() - started
          end
          if i == AHEAD and before then before.decoded() end
          cr.yield()
        end
      end)
      local window = { sampled = model:mark() }
      unet:free()
      window.faces = cr.keep(model:decode(x, clip))
      cr.cuda.hand_over(window.faces, BESIDE)
      window.decoded = model:mark()
      return window, args.dump_latents and x:permute(1, 5, 2, 3, 4):to 'f32':clone()
    end)
  end

  local function make_all()
    -- Kept by the session: the voice is heard while the first frames are decoded.
    progress:measure('audio', 0, cr.scope, function() session.tokens:window(1, 1) end)
    local before
    for clip in found do
      local window, latents = {}, nil
      if latentsync.has_face(clip) then
        window, latents = make(clip, before)
        before = window
      end
      if latents then dumped[#dumped + 1] = latents end
      window.clip = clip
      made:put(window)
    end
    made:close()
  end

  -- A finished frame as the encoder takes it; the card's memory does not wait for the encoder.
  local pause = give_way(model.device)
  local function down(frame, item)
    finished:put(cr.keep(sink:pack(frame)))
    item.frame:free()
    pause()
  end

  local function leave(items)
    for _, item in ipairs(items) do cr.scope(function() down(item.frame:rgb(), item) end) end
  end

  local function finish()
    beside()
    for window in made do
      if window.faces then
        progress:measure('denoise', 0, window.sampled)
        progress:measure('decode latents', 0, window.decoded)
        model:paste(window.faces, window.clip, down)
        window.faces:free()
      else
        leave(window.clip.items)
      end
    end
    while args.tail == 'keep' do
      local items = session:rest(args.frames_per_window)
      if #items == 0 then break end
      leave(items)
    end
    finished:close()
  end

  local function encode()
    for frame in finished do
      progress:measure('encode', 1, function() sink:write { frame } end)
      progress:advance(1)
      frame:free()
    end
  end

  cr.all { find, make_all, finish, encode }
end

-- ---- report ----------------------------------------------------------------------------------

local function peak_resident()
  for line in io.lines '/proc/self/status' do
    local kib = line:match '^VmHWM:%s*(%d+)'
    if kib then return tonumber(kib) * 1024 end
  end
end

--- What the card is, and the most that was held on it, without CUDA's own context.
local function card_report(device)
  local info, memory = cr.cuda.info(device), cr.memory(device)
  local tags = {}
  for i, tag in ipairs(memory.tags) do tags[i] = { name = tag.name, peak_bytes = tag.peak } end
  return {
    name = info.name, driver = info.driver, cudnn = info.cudnn, cublas = info.cublas,
    peak_bytes = memory.peak, peak_reserved_bytes = memory.peak_reserved, tags = tags,
  }
end

-- ---- run -------------------------------------------------------------------------------------

local function main()
  cli.check_readable('--video', args.video)
  cli.check_readable('--audio', args.audio)
  cli.check_folder('--out', args.out)
  if args.lossless and not args.out:find '%.mkv$' then
    fail('--out: %s: --lossless writes Matroska, so the name must end in .mkv', args.out)
  end
  if args.dump_latents then cli.check_folder('--dump-latents', args.dump_latents) end
  if args.report then cli.check_folder('--report', args.report) end
  if args.duration and args.duration <= 0 then fail '--duration must be more than 0 seconds' end
  local device = cli.device(args.device)
  scheduler_of(args.steps) -- what is wrong is told before the model is loaded
  method_of()
  local quant = quant_of(device)
  if device ~= 'cpu' then cr.cuda.prepare(device) end -- while weights are loaded
  local points = args.points and read_points(args.points)
  if args.seed == -1 then
    args.seed = random_seed()
    io.stderr:write('seed ', args.seed, '\n')
  end
  local dtype = args.dtype or (device == 'cpu' and 'f32' or 'f16')
  local rng = args.rng == 'torch' and (device == 'cpu' and 'torch-cpu' or 'torch-cuda') or args.rng

  local media = require 'cr.media'
  local info = media.probe(args.video)
  if not info.has_video then fail('%s has no video stream', args.video) end
  if not media.probe(args.audio).has_audio then fail('%s has no audio stream', args.audio) end

  local progress = require 'cr.tools.progress'.new { quiet = args.quiet }
  local function measure(...) return progress:measure(...) end

  local model = progress:measure('load', 0, function()
    return require 'models.latentsync'.load(args.checkpoint,
      { device = device, dtype = dtype, quant = quant, vae = args.vae, size = args.size })
  end)
  args.steps = args.steps or model.sampling.steps or 20
  args.guidance = args.guidance or model.sampling.guidance or 1.5
  local scheduler = scheduler_of(args.steps)
  method = method_of()
  local smooth = args.smooth
  if smooth == nil then smooth = not points end

  local session = model:session(args.video, args.audio, {
    frames = args.frames_per_window, seed = args.seed, rng = rng, points = points, smooth = smooth,
    no_face = args.no_face, mask = args.mask, paste = args.paste, start = args.start,
    duration = args.duration, audio_overlap = args.audio_overlap, measure = measure,
    pause = give_way(device),
  })
  scheduler:use(session.generator)
  progress:expect(args.tail == 'cut' and session.total or nil)

  local sink = media.writer(args.out, {
    like = args.video, fps = 25, audio = args.audio, audio_start = args.start,
    audio_end = args.duration and args.start + args.duration or nil, codec = args.codec,
    crf = args.crf, lossless = args.lossless, comment = not args.no_label and LABEL or nil,
  })
  local ok, err = pcall(sync, model, session, scheduler, sink, progress)
  if ok and session.source.found == 0 then
    ok, err = false, ('no face was found in any of the %d frames of %s'):format(session.source.decoded, args.video)
  end
  if ok then
    ok, err = pcall(function() progress:measure('encode', 0, function() sink:close() end) end)
  end
  if not ok then
    sink:abort()
    session:close()
    progress:clear()
    error(err, 0)
  end
  progress:clear()

  local seconds = progress:seconds() -- without the files' hashes
  local missing = session.source.missing
  local frames = progress.done
  if args.dump_latents then
    if #dumped == 0 then fail('--dump-latents: no window of %s has a face, so there are no latents', args.video) end
    cr.save(args.dump_latents, { latents = cr.cat(dumped, 3) }, {
      scheduler = require 'cjson'.encode(scheduler:settings()), steps = tostring(args.steps), seed = tostring(args.seed),
      guidance = require 'cjson'.encode(method.settings), cache = args.cache or 'none',
    })
  end
  if args.report then
    local hashes = {}
    for name, path in pairs(model.files) do hashes[name] = { path = path, sha256 = require 'cr.weights'.sha256(path) } end
    require 'cr.files'.write(args.report, require 'cjson'.encode {
      output = args.out, frames = frames, frames_without_face = missing, seconds = seconds,
      first_step_seconds = first_step,
      stages = progress:report(), peak_resident_bytes = peak_resident(), tensors_peak_bytes = cr.memory().peak,
      card = device ~= 'cpu' and card_report(device) or nil, seed = args.seed, checkpoint = hashes,
      settings = {
        size = model.size, frames_per_window = args.frames_per_window, steps = scheduler.options.steps or args.steps,
        guidance = args.guidance, guidance_interval = method.settings.interval, guidance_rescale = args.guidance_rescale,
        guidance_off_last = args.guidance_off_last, cache = args.cache, cached_steps = args.cache and method.counts,
        scheduler = scheduler.name, scheduler_options = scheduler:settings().options,
        device = device, dtype = dtype, quant = args.quant, quantized_layers = model.quantized and #model.quantized, rng = rng,
        paste = args.paste, no_face = args.no_face, smooth = smooth, start = args.start,
        duration = args.duration, tail = args.tail, audio_overlap = args.audio_overlap, crf = args.crf,
        lossless = args.lossless, codec = args.codec, points = args.points, mask = args.mask,
        threads = cr.threads(),
      },
      versions = { crescent = cr.version, libav = media.version(), luajit = jit.version },
    } .. '\n', '--report')
  end
  session:close()
  if not args.quiet then
    io.stderr:write(('%s: %d frames in %.1f s%s\n'):format(args.out, frames, seconds,
      missing > 0 and (', %d without a face'):format(missing) or ''))
  end
end

cr.run(main)
