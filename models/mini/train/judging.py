"""Evaluates the generator during training: held-out faces are lip-synced to other held-out voices.

As at inference, the reference is the same frame with the mouth of another sentence. Mouth openings are estimated
from latents by a ridge regression; the project's benchmark measures them on decoded images.
"""

import torch

from . import checkpoint, common, config, diffusion
from .latents import composite
from .sync_network import FRAMES, SyncNet, judge, lips, mouth_windows, sound_windows


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm() + 1e-9)).item()


class Judge:
    WINDOWS = 4  # with 16 frames each

    def __init__(self, args, data, latents):
        self.data, self.latents, self.args = data, latents, args
        saved = checkpoint.load(args.run, 'syncnet', missing_ok=True)
        self.trained = saved is not None
        self.sync = SyncNet().to(args.device).eval().requires_grad_(False)
        if saved:
            self.sync.load_state_dict(saved['ema'])
        length = self.WINDOWS * config.FRAMES
        # The longest clips; each face gets the sound of the next one.
        ids = sorted(data.split['test'].tolist(), key=lambda i: -data.clips[i]['frames'])
        self.faces = [i for i in ids if data.clips[i]['frames'] >= length] or ids[:2]
        self.fit()

    def mouth_latents(self, x):
        side = x.shape[-2]
        return x[..., side // 2:side * 7 // 8, side // 4:side * 3 // 4, :].flatten(-3)

    @torch.no_grad()
    def fit(self):
        """The ridge regression from the mouth's latents to the opening, on faces of the training."""
        numbers = self.data.frame_numbers('train')
        numbers = numbers[torch.linspace(0, len(numbers) - 1, min(20000, len(numbers))).long()]
        x, _ = self.latents.draw(numbers[:, None], torch.zeros_like(numbers))
        x = self.mouth_latents(x[:, 0]).double()
        y = self.data.opening[numbers].double()
        self.mean, self.offset = x.mean(0), y.mean()
        x = x - self.mean
        eye = torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        self.ridge = torch.linalg.solve(x.T @ x + 1e-2 * len(x) * eye, x.T @ (y - self.offset))

    def opening(self, x):
        """Openings [n] of scaled latents [n h w C]."""
        return (self.mouth_latents(x).double() - self.mean) @ self.ridge + self.offset

    @torch.no_grad()
    def __call__(self, predict, table, guidance, clips=8, sheet=None):
        """One line of figures; with `sheet` also a picture: input, output and the face whose sound it is."""
        data, latents, device = self.data, self.latents, self.args.device
        faces = torch.tensor(self.faces[:clips], device=device)
        sounds = faces.roll(-1)
        n, length = len(faces), self.WINDOWS * config.FRAMES
        g = torch.Generator(device).manual_seed(7)
        start = view = torch.zeros(n, dtype=torch.long, device=device)

        def windows(x):
            return x.reshape(n * self.WINDOWS, config.FRAMES, *x.shape[2:])

        numbers, said = data.window(faces, start, length), data.window(sounds, start, length)
        whole, masked = latents.draw(numbers, view, g)
        side, channels = whole.shape[2], whole.shape[-1]
        # One draw for every frame of every window, as in the pipeline.
        noise = torch.randn(1, 1, side, side, channels, device=device, generator=g)
        x = diffusion.sample(predict, noise.expand(n * self.WINDOWS, config.FRAMES, -1, -1, -1),
                             windows(latents.condition(masked, whole)),
                             windows(data.tokens(sounds, start, length).float()), table, config.SAMPLING['steps'], guidance).reshape(n, length, side, side, channels)
        of_sound, _ = latents.draw(said, view)
        found, reader, right, confidences, true, rows = [], [], [], [], [], []
        for i in range(n):
            truth_opening = data.opening[said[i]].double()
            found.append(correlation(self.opening(x[i]), truth_opening))
            reader.append(correlation(self.opening(of_sound[i]), truth_opening))
            shown, own = (latents.pictures(v[i:i + 1], view[:1]) for v in (numbers, said))
            with common.autocast(self.args):
                decoded = latents.decode(x[i:i + 1])
            made = composite(decoded.clamp(-1, 1), shown, latents.mask)
            rows_of_sound = data.sound(sounds[i:i + 1], start[:1], length - FRAMES + 1)
            heard = self.sync.sound(sound_windows(rows_of_sound)[0])
            offset, confidence, _ = judge(self.sync.mouth(mouth_windows(lips(made))[0]), heard)
            right.append(abs(offset) <= 1)
            confidences.append(confidence)
            true.append(judge(self.sync.mouth(mouth_windows(lips(own))[0]), heard)[1])
            if i < 5:
                pick = slice(0, 2 * config.FRAMES, 2)
                rows += [shown[0, pick], made[0, pick], own[0, pick]]
        if sheet:
            common.save_sheet(sheet, rows)

        def mean(v):
            return sum(v) / len(v)

        text = (f'{n} test faces with other sound: opening against the truth {sorted(found)[n // 2]:.3f} (median; the '
                f'reader itself {sorted(reader)[n // 2]:.3f})')
        if self.trained:
            text += (f', SyncNet offset within 1 {mean(right):.2f}, confidence {mean(confidences):.3f} '
                     f'(true clips {mean(true):.3f})')
        return text
