--- Presets of sampling settings for users who do not know schedulers; lua/README.md compares the methods.

return {
  { name = 'draft', help = 'five steps: the fastest, for a first look', settings = { scheduler = 'euler_karras', steps = 5 } },
  { name = 'fast', help = 'ten steps of UniPC: closer to the many-step result than LatentSync\'s twenty',
    settings = { scheduler = 'unipc_karras', steps = 10 } },
  { name = 'fine', help = 'twenty steps of Euler: closest to the many-step result', settings = { scheduler = 'euler_karras', steps = 20 } },
  { name = 'reference', help = "LatentSync's default: DDIM with twenty steps", settings = { scheduler = 'ddim', steps = 20 } },
}
