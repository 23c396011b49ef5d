'use strict';
const HEADER_BYTES = 44;  // of the WAV files that the server makes
const FULL_SCALE = 32768;
const part = (id) => document.getElementById(id);
let running = null;  // the request whose sound is played

class Player {
  // Plays samples as they come, each piece right behind the one before. To be made while a click is handled: browsers
  // let no sound begin by itself.
  constructor() {
    this.context = new AudioContext();
    this.end = 0;
  }
  play(samples, rate) {
    const buffer = this.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / FULL_SCALE), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.end = Math.max(this.end, this.context.currentTime + 0.05);
    source.start(this.end);
    this.end += buffer.duration;
  }
  stop() {
    if (this.context.state !== 'closed') this.context.close();
  }
}

function samplesOf(bytes) {
  // 16 bits, little-endian.
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Int16Array.from({length: bytes.length >> 1}, (_, i) => view.getInt16(2 * i, true));
}

async function wavFile(pieces) {
  // The whole file, with its length in place of "unknown".
  const wav = await new Blob(pieces).arrayBuffer();
  const view = new DataView(wav);
  view.setUint32(4, wav.byteLength - 8, true);
  view.setUint32(HEADER_BYTES - 4, wav.byteLength - HEADER_BYTES, true);
  return new Blob([wav], {type: 'audio/wav'});
}

function showError(message) {
  part('error').textContent = message;
  part('error').hidden = !message;
}

function showSpeaking(isSpeaking) {
  part('speak').disabled = isSpeaking;
  part('stop').disabled = !isSpeaking;
}

async function errorOf(response) {
  const values = await response.json().catch(() => null);
  return new Error(values?.error?.message ?? `The server answered with ${response.status}.`);
}

async function* eventsOf(response) {
  // Server-sent events, as values; comments, which keep the connection alive, are left out.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const events = (text + value).split('\n\n');
    text = events.pop();
    for (const event of events) {
      if (event.startsWith('data: ')) yield JSON.parse(event.slice('data: '.length));
    }
  }
}

async function fetchSpeech(signal, onSound) {
  // The whole file; its samples go to onSound as they come.
  const began = performance.now();
  const passedSec = () => (performance.now() - began) / 1000;
  const body = {input: part('text').value, voice: part('voice').value, response_format: 'wav', stream_format: 'sse',
                temperature: Number(part('temperature').value), seed: Number(part('seed').value)};
  const response = await fetch('/v1/audio/speech',
    {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body), signal});
  if (!response.ok) throw await errorOf(response);
  const rate = Number(response.headers.get('X-Slmkit-Sample-Rate'));
  const pieces = [];
  let firstSec = null, ending = null;
  for await (const event of eventsOf(response)) {
    if (event.type === 'error') throw new Error(event.error.message);
    if (event.type === 'speech.audio.done') ending = event;
    if (event.type !== 'speech.audio.delta') continue;
    const bytes = Uint8Array.from(atob(event.audio), (letter) => letter.charCodeAt(0));
    firstSec ??= passedSec();
    onSound(samplesOf(pieces.length ? bytes : bytes.subarray(HEADER_BYTES)), rate);
    pieces.push(bytes);
    part('status').textContent = 'Speaking';
  }
  if (!ending) throw new Error('The connection ended before the speech was whole.');
  const limit = ending.limit ? ` (stopped at the limit: ${ending.limit})` : '';
  part('status').textContent = `${ending.seconds.toFixed(2)} s of speech${limit}, ready after ` +
    `${passedSec().toFixed(2)} s, first sound after ${firstSec.toFixed(2)} s`;
  return wavFile(pieces);
}

async function speak() {
  showError('');
  if (!part('text').value.trim()) {
    showError('Type a sentence first.');
    part('text').focus();
    return;
  }
  const wrong = ['temperature', 'seed'].map(part).find((input) => !input.checkValidity());
  if (wrong) {
    showError(`${wrong.labels[0].textContent}: ${wrong.validationMessage}`);
    wrong.focus();
    return;
  }
  stop();
  const abort = new AbortController();
  const mine = running = {abort, player: new Player()};
  showSpeaking(true);
  part('result').hidden = true;
  part('status').textContent = 'Waiting';
  try {
    const file = await fetchSpeech(abort.signal, (samples, rate) => mine.player.play(samples, rate));
    URL.revokeObjectURL(part('audio').src);
    part('audio').src = part('save').href = URL.createObjectURL(file);
    part('result').hidden = false;
  } catch (error) {
    mine.player.stop();
    part('status').textContent = '';
    if (error.name !== 'AbortError') showError(error.message);
  } finally {
    if (running === mine) showSpeaking(false);
  }
}

function stop() {
  running?.abort.abort();
  running?.player.stop();
  running = null;
  showSpeaking(false);
}

function showLength() {
  const {value, maxLength} = part('text');
  part('length').textContent = `${value.length} of at most ${maxLength} characters`;
}

async function start() {
  part('form').addEventListener('submit', (event) => { event.preventDefault(); speak(); });
  part('stop').addEventListener('click', stop);
  part('audio').addEventListener('play', () => running?.player.stop());
  part('text').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) part('form').requestSubmit();
  });
  try {
    const [voices, models] = await Promise.all(
      ['/v1/audio/voices', '/v1/models'].map((path) => fetch(path).then((response) => response.json())));
    for (const voice of voices.voices) part('voice').add(new Option(voice.name, voice.id));
    const model = models.data[0];
    part('model').textContent = document.title = model.id;
    part('text').maxLength = model.max_chars;
    part('text').addEventListener('input', showLength);
    showLength();
  } catch (error) {
    showError(`The server cannot be reached: ${error.message}`);
  }
}

start();
