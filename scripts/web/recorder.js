// An audio worklet that records the microphone and passes its samples on in pieces of about 20 ms.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate / 50));
    this.count = 0;
  }

  process([[samples]]) {
    for (const x of samples || []) {
      this.piece[this.count++] = Math.max(-1, Math.min(1, x)) * 32767;
      if (this.count === this.piece.length) {
        this.port.postMessage(this.piece.slice().buffer);
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor('recorder', Recorder);
