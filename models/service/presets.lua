--- Ways to sample that somebody who knows no scheduler can choose among: figures are in README.md's table of methods.

return {
  { name = 'draft', help = 'five steps: a first look, fastest', settings = { scheduler = 'euler_karras', steps = 5 } },
  { name = 'fast', help = 'ten steps of UniPC: nearer to what many steps give than the reference\'s twenty',
    settings = { scheduler = 'unipc_karras', steps = 10 } },
  { name = 'fine', help = 'twenty steps of Euler: nearest to what many steps give', settings = { scheduler = 'euler_karras', steps = 20 } },
  { name = 'reference', help = "LatentSync's own way: DDIM with twenty steps", settings = { scheduler = 'ddim', steps = 20 } },
}
