"""What the training commands share: options, the clock, compiling, learning rates, sheets of pictures."""

import argparse
import os
import sys
import time

import torch


def options(description, **defaults):
    parser = argparse.ArgumentParser(description=description.split('\n')[0])
    parser.add_argument('--data', required=True, help='folder that data.py wrote')
    parser.add_argument('--run', required=True, help='folder of checkpoints, logs and sheets')
    parser.add_argument('--minutes', type=float, default=defaults.pop('minutes', 5.0),
                        help='training time, the saved checkpoint included')
    parser.add_argument('--steps', type=int, default=10 ** 9, help='maximum number of steps')
    parser.add_argument('--batch', type=int, default=defaults.pop('batch'))
    parser.add_argument('--lr', type=float, default=defaults.pop('lr'))
    parser.add_argument('--decay', action='store_true', help='decay the learning rate to 0, for the last run')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--no-compile', action='store_true')
    assert not defaults
    return parser


class Run:
    """The clock and the log of one command."""

    def __init__(self, name, args):
        self.name, self.args, self.began = name, args, time.time()
        self.seconds = args.minutes * 60
        os.makedirs(args.run, exist_ok=True)
        self.file = open(os.path.join(args.run, 'log.txt'), 'a')
        if args.device.startswith('cuda'):
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        torch.manual_seed(args.seed)
        self.last_save = self.last_line = time.time()
        self.lined_step = None
        self.log(' '.join(sys.argv[1:]))

    def log(self, text):
        line = f'{self.name} {time.time() - self.began:6.1f} s  {text}'
        print(line, flush=True)
        self.file.write(line + '\n')
        self.file.flush()

    def share(self):
        """How much of the time has gone, 0 to 1 and beyond."""
        return (time.time() - self.began) / self.seconds

    def over(self, reserve=0):
        """Whether it is time to stop, `reserve` seconds before the end."""
        return time.time() - self.began > self.seconds - reserve

    def due(self, step, every=15):
        """True once per interval: time for a line in the log."""
        now = time.time()
        if now - self.last_line < every and self.lined_step is not None:
            return False
        self.rate = (step - self.lined_step) / (now - self.last_line) if self.lined_step is not None else 0
        self.last_line, self.lined_step = now, step
        return True

    def save_due(self, every=60):
        if time.time() - self.last_save < every:
            return False
        self.last_save = time.time()
        return True

    def rate_factor(self, step, warmup=200, tail=0.4):
        """The learning rate's factor: a linear start and, with --decay, a linear end over the time's tail."""
        f = min(1.0, (step + 1) / warmup)
        if self.args.decay:
            f *= min(1.0, max(0.0, (1 - self.share()) / tail) + 0.01)
        return f


def compiled(function, args, run):
    """torch.compile where it works; if the first call (and its backward pass) fails, the log says so and
    things go on without. The first call may leave gradients behind: clear them before the backward pass."""
    if args.no_compile or not args.device.startswith('cuda'):
        return function
    fast = torch.compile(function, dynamic=False)
    state = {'chosen': None}

    def call(*inputs):
        if state['chosen'] is None:
            began = time.time()
            try:
                # Detached copies, so that this backward pass ends here.
                out = fast(*(i.detach().requires_grad_(i.requires_grad) for i in inputs))
                total = sum(o.float().sum() for o in (out if isinstance(out, tuple) else (out,)))
                if total.requires_grad:
                    total.backward()
                state['chosen'] = fast
                run.log(f'compiled in {time.time() - began:.0f} s')
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # no compiler, or an unsupported operation
                run.log(f'torch.compile failed, going on without: {type(error).__name__}: {str(error)[:300]}')
                state['chosen'] = function
        return state['chosen'](*inputs)

    return call


def autocast(args):
    return torch.autocast(args.device.split(':')[0], torch.bfloat16, enabled=args.device.startswith('cuda'))


def optimizer_of(parameters, args, betas=(0.9, 0.99), weight_decay=0.01):
    parameters = list(parameters)
    groups = [{'params': [p for p in parameters if p.dim() >= 2], 'weight_decay': weight_decay},
              {'params': [p for p in parameters if p.dim() < 2], 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=betas, fused=args.device.startswith('cuda'))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group['lr'] = rate


def descend(loss, optimizer, average, clipped=None):
    """One step down the loss's gradient, and of the weights' average. Returns the gradient's length, which is held
    to 1, where the parameters that it is of are given."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    length = None if clipped is None else torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()
    average.update()
    return length


def save_sheet(path, rows):
    """A PNG of rows of pictures: a list of float tensors [n H W 3] in [-1, 1] or u8."""
    from PIL import Image
    lines = []
    for row in rows:
        if row.dtype != torch.uint8:
            row = ((row.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        lines.append(torch.cat(list(row.cpu()), dim=1))
    widest = max(line.shape[1] for line in lines)
    lines = [torch.nn.functional.pad(line, (0, 0, 0, widest - line.shape[1])) for line in lines]
    Image.fromarray(torch.cat(lines, dim=0).numpy()).save(path + '.part', format='PNG')
    os.replace(path + '.part', path)
