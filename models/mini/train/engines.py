"""Speech with exact phoneme timings from the engines that Debian ships: flite, festival and
espeak-ng.

    apt-get install flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts \\
        libespeak-ng1

speak(engine, voice, text, speed, pitch) -> (samples float32 at 16 kHz, phones [[symbol, start_s,
end_s], ...]). Phones are one ARPABET-like set without stress, PHONES below; "pau" is silence.
Phones touch each other and cover the sound.
"""

import ctypes
import math
import os
import pickle
import subprocess
import tempfile

import numpy
import soundfile
from scipy.signal import resample_poly

RATE = 16000
PHONES = set(
    """aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw
    v w y z zh pau""".split()
)
# The phone sets of flite and festival are already close to this one.
_RADIO = {
    "axr": "er",
    "dx": "d",
    "el": "l",
    "em": "m",
    "en": "n",
    "nx": "n",
    "hv": "hh",
    "brth": "pau",
    "h#": "pau",
    "ssil": "pau",
    "sil": "pau",
    "#": "pau",
}
# espeak-ng's English mnemonics (`espeak-ng -x`), over all its English accents; joined phones share
# the time evenly.
_ESPEAK = dict(
    pair.split("=")
    for pair in """
p=p  b=b  t=t  d=d  k=k  g=g  tS=ch  dZ=jh  f=f  v=v  T=th  D=dh  s=s  z=z  S=sh  Z=zh  h=hh
m=m  n=n  N=ng  l=l  r=r  j=y  w=w  ?=pau  t2=d  t#=d  r-=r  r/=r  m-=m  n-=n  l#=l  w#=w  t/=t
d#=d  z#=z  @=ax  3=er  3:=er  @2=ax  @5=ax  a#=ax  @L=ax+l  a=ae  aa=ae  A:=aa  A@=aa+r  0=aa
0#=aa  02=aa  O=ao  O:=ao  O@=ao+r  o@=ao+r  O2=ao  oU=ow  V=ah  E=eh  e=eh  E#=eh  e@=eh+r
eI=ey  I=ih  I#=ih  I2=ih  i=iy  i:=iy  i@=iy+r  i@3=iy+r  U=uh  U@=uh+r  u=uw  u:=uw  aI=ay
aI2=ay  aI3=ay+er  aI@=ay+er  aU=aw  aU@=aw+er  OI=oy  @-=ax  VR=er  IR=er  t[=t
""".split()
)


def resample(x, rate, target):
    """Band-limited change of rate; the first sample stays the first sample, so times in seconds
    stay."""
    if rate == target:
        return x.astype(numpy.float32)
    common = math.gcd(int(rate), int(target))
    return resample_poly(x, int(target) // common, int(rate) // common).astype(numpy.float32)


def tidy(phones, seconds):
    """Known symbols, touching each other, covering 0 .. seconds, neighbouring pauses joined."""
    tidy = []
    for symbol, start, end in phones:
        symbol = _RADIO.get(symbol, symbol)
        if symbol not in PHONES:
            raise ValueError("phone '%s' is in no table: add it to engines.py" % symbol)
        end = min(end, seconds)
        start = tidy[-1][2] if tidy else 0.0
        if end - start < 1e-4:
            continue
        if tidy and tidy[-1][0] == "pau" and symbol == "pau":
            tidy[-1][2] = end
        else:
            tidy.append([symbol, start, end])
    if tidy and tidy[-1][0] == "pau":
        tidy[-1][2] = seconds
    elif not tidy or seconds - tidy[-1][2] > 1e-4:
        tidy.append(["pau", tidy[-1][2] if tidy else 0.0, seconds])
    return tidy


def flite(voice, text, speed=1.0, pitch=1.0):
    """Flite's voices kal, kal16 (diphones; pitch obeyed), awb, rms, slt (statistical; pitch is the
    voice's own)."""
    with tempfile.TemporaryDirectory() as folder:
        wav = os.path.join(folder, "a.wav")
        command = [
            "flite",
            "-voice",
            voice,
            "--setf",
            "duration_stretch=%.4f" % (1 / speed),
            "-psdur",
            "-o",
            wav,
            "-t",
            text,
        ]
        if voice.startswith("kal"):
            command[3:3] = ["--setf", "int_f0_target_mean=%.1f" % (100 * pitch)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        x, rate = soundfile.read(wav, dtype="float32")
    phones, start = [], 0.0
    for word in out.split():
        symbol, end = word.rsplit(":", 1)
        phones.append([symbol, start, float(end)])
        start = float(end)
    return resample(x, rate, RATE), tidy(phones, len(x) / rate)


_FESTIVAL = {"kal": "kal_diphone", "ked": "ked_diphone", "slt": "cmu_us_slt_arctic_hts"}


def festival(voice, text, speed=1.0, pitch=1.0):
    """Festival's voices kal, ked (diphones; pitch obeyed) and slt (HTS; pitch is the voice's
    own)."""
    with tempfile.TemporaryDirectory() as folder:
        wav, segments, script = (os.path.join(folder, name) for name in ("a.wav", "a.lab", "a.scm"))
        with open(script, "w") as f:
            f.write("(voice_%s)\n" % _FESTIVAL[voice])
            if voice == "slt":
                f.write(
                    '(set! hts_engine_params (append hts_engine_params \'(("-r" %.3f))))\n' % speed
                )
            else:
                f.write("(Parameter.set 'Duration_Stretch %.4f)\n" % (1.1 / speed))
                f.write(
                    "(set! int_lr_params '((target_f0_mean %.1f) (target_f0_std %.1f)"
                    " (model_f0_mean 170)"
                    " (model_f0_std 34)))\n" % (105 * pitch, 15 * pitch)
                )
            f.write(
                '(let ((u (Utterance Text "%s"))) (utt.synth u) (utt.save.wave u "%s" \'riff)'
                ' (utt.save.segs u "%s"))\n'
                % (text.replace("\\", "").replace('"', ""), wav, segments)
            )
        subprocess.run(["festival", "-b", script], check=True, capture_output=True)
        x, rate = soundfile.read(wav, dtype="float32")
        phones, start = [], 0.0
        with open(segments) as f:
            for line in f:
                fields = line.split()
                if len(fields) == 3:
                    phones.append([fields[2], start, float(fields[0])])
                    start = float(fields[0])
    x = numpy.unwrap(x, period=2.0)  # the loudest samples of ked overflow 16 bits; this undoes it
    return resample(x / max(1.0, float(numpy.abs(x).max())), rate, RATE), tidy(
        phones, len(x) / rate
    )


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Id),
    ]


_PHONEME_EVENT = 7


def _espeak_events(voice, text, speed, pitch):
    """(samples, rate, [(sample, mnemonic), ...]) from the library."""
    library = ctypes.CDLL("libespeak-ng.so.1")
    rate = library.espeak_Initialize(
        2, 0, None, 1
    )  # synchronous, sound through the callback; phoneme events
    if rate <= 0:
        raise RuntimeError("espeak-ng does not start: is espeak-ng-data installed?")
    sound, events = [], []

    def receive(samples, count, event):
        if samples and count > 0:
            sound.append(numpy.ctypeslib.as_array(samples, shape=(count,)).copy())
        i = 0
        while event[i].type != 0:
            if event[i].type == _PHONEME_EVENT:
                raw = ctypes.string_at(ctypes.addressof(event[i].id), 8).split(b"\0")[0]
                events.append((event[i].sample, raw.decode("utf-8", "replace")))
            i += 1
        return 0

    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
    )
    callback = kind(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError("espeak-ng knows no voice '%s'" % voice)
    library.espeak_SetParameter(1, int(155 * speed), 0)  # words a minute
    library.espeak_SetParameter(3, int(min(99, max(0, 50 + 60 * math.log2(pitch)))), 0)  # pitch
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
    library.espeak_Synchronize()
    return numpy.concatenate(sound), rate, events


def _apart(function, *arguments):
    """The function's result, made in a process of its own.

    espeak-ng keeps noise and phases from one sentence to the next, so only a fresh library says a
    sentence always alike."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                result = (True, function(*arguments))
            except Exception as problem:  # is passed to the parent, which raises it
                result = (False, problem)
            with os.fdopen(writing, "wb") as f:
                pickle.dump(result, f)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        data = f.read()
    os.waitpid(child, 0)
    if not data:
        raise RuntimeError("espeak-ng's process ended without an answer")
    fine, result = pickle.loads(data)
    if not fine:
        raise result
    return result


def _closures(phones, x, rate):
    """Starts of p t k ch moved back to where their closure begins.

    espeak-ng reports a voiceless stop at its burst; the silence of the closure before it counts as
    the end of the phone before. The closure is found in the sound: the stretch up to the burst that
    is 20 dB under the phone before. Where a voice's echo fills it, 30 ms are taken."""
    step = max(1, int(rate * 0.004))
    level = numpy.sqrt(
        numpy.convolve(x.astype(numpy.float64) ** 2, numpy.ones(step) / step, "same")
    )
    for i in range(1, len(phones)):
        if phones[i][0] not in ("p", "t", "k", "ch") or phones[i - 1][0] == "pau":
            continue
        _, start, burst = phones[i - 1]
        least = max(start + 0.4 * (burst - start), burst - 0.12)
        around = level[int(start * rate) : int(burst * rate)]
        quiet = max(0.02 * level.max(), 0.1 * around.max(initial=0))
        at, missed, found = burst, 0, max(least, burst - 0.03)
        while at > least and missed < 3:  # skips a few loud samples at the burst itself
            at -= 0.004
            if level[min(int(at * rate), len(level) - 1)] < quiet:
                missed, found = 0, min(found, at)
            else:
                missed += 1
        phones[i][1] = phones[i - 1][2] = max(found, least)
    return phones


def espeak(voice, text, speed=1.0, pitch=1.0):
    """espeak-ng; voice is language+variant, as en-us+f2. pitch 1 is the variant's own."""
    x, rate, events = _apart(_espeak_events, voice, text, speed, pitch)
    x = x.astype(numpy.float32) / 32768
    seconds = len(x) / rate
    starts = [at / rate for at, _ in events] + [seconds]
    phones = [["pau", 0.0, starts[0]]]
    for (_, name), start, end in zip(events, starts, starts[1:]):
        if name.startswith("_") or name == "":
            symbols = ["pau"]
        elif name.strip("'%,=;|") == "":
            symbols = [phones[-1][0]]  # a modifier, which belongs to the phone before it
        elif name in _ESPEAK:
            symbols = _ESPEAK[name].split("+")
        else:
            raise ValueError("espeak-ng's phoneme '%s' is in no table: add it to engines.py" % name)
        for k, symbol in enumerate(symbols):
            a = start + (end - start) * k / len(symbols)
            phones.append([symbol, a, start + (end - start) * (k + 1) / len(symbols)])
    phones = _closures([p for p in phones if p[2] > p[1]], x, rate)
    return resample(x, rate, RATE), tidy(phones, seconds)


def speak(engine, voice, text, speed=1.0, pitch=1.0):
    """Samples at 16 kHz and phones; speed and pitch are factors on the voice's own.

    The statistical slt sounds about 10 ms after its labels and espeak-ng's formant voices 10 ms
    before their events (check_voices.py measures it); phones are moved by that, so that all engines
    agree to a few milliseconds."""
    x, phones = {"flite": flite, "festival": festival, "espeak": espeak}[engine](
        voice, text, speed, pitch
    )
    late = (
        0.008 if voice == "slt" else -0.008 if engine == "espeak" and "klatt" not in voice else 0.0
    )
    seconds = len(x) / RATE
    return x, tidy(
        [[s, a, b if b == seconds else min(b + late, seconds)] for s, a, b in phones], seconds
    )
