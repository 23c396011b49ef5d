"""The page at `/`: type a text, choose a voice, listen.

Three files without anything from elsewhere, and a policy that allows nothing else. The sound is played while it comes;
when it is whole it is there again with controls and to be kept. Texts and names of voices reach the page as text only.

Example:
    content_type, text = FILES["/"]
"""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>slmkit speaks</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
</head>
<body>
<main>
<h1><span id="model">slmkit</span></h1>
<form id="form" novalidate>
<label for="text">Text</label>
<textarea id="text" rows="5" dir="auto" autofocus placeholder="What shall be said?"></textarea>
<div class="row">
<div><label for="voice">Voice</label><select id="voice"></select></div>
<div><label for="temperature">Temperature</label>
<input id="temperature" type="number" min="0" max="2" step="0.1" value="0"></div>
<div><label for="seed">Seed</label><input id="seed" type="number" min="0" step="1" value="0"></div>
<div class="buttons"><button id="speak">Speak</button><button id="stop" type="button" disabled>Stop</button></div>
</div>
</form>
<p id="error" role="alert" hidden></p>
<p id="status" role="status"></p>
<div id="result" hidden>
<audio id="audio" controls></audio>
<a id="keep" download="speech.wav">Save as WAV</a>
</div>
</main>
</body>
</html>
"""

CSS = """
:root { color-scheme: light; --line: #d9dee5; --dim: #5c6773; --bad: #b3261e; --blue: #3556a0; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2126; background: #f5f7f9; margin: 0; }
main { max-width: 720px; margin: 40px auto; padding: 26px 28px 30px; background: #fff; border: 1px solid var(--line);
       border-radius: 8px; }
h1 { font-size: 21px; margin: 0 0 16px; overflow-wrap: anywhere; }
label { display: block; color: var(--dim); font-size: 13px; margin: 0 0 3px; }
textarea, select, input, button { font: inherit; padding: 8px 10px; border: 1px solid #b6bec9; border-radius: 5px;
                                  background: #fff; color: inherit; min-height: 42px; }
textarea { width: 100%; resize: vertical; display: block; margin-bottom: 14px; }
textarea:focus-visible, select:focus-visible, input:focus-visible, button:focus-visible, a:focus-visible {
  outline: 2px solid var(--blue); outline-offset: 1px; }
.row { display: flex; flex-wrap: wrap; gap: 14px; align-items: end; }
.row > div:first-child { flex: 1 1 180px; }
select { width: 100%; }
input { width: 96px; }
.buttons { display: flex; gap: 8px; }
button { background: var(--blue); border-color: var(--blue); color: #fff; padding: 8px 18px; cursor: pointer; }
#stop { background: #fff; color: var(--blue); }
button:disabled { opacity: 0.45; cursor: default; }
#error { background: #fce8e6; color: var(--bad); border-radius: 5px; padding: 9px 13px; margin: 18px 0 0;
         overflow-wrap: anywhere; }
#status { color: var(--dim); font-size: 14px; margin: 16px 0 0; min-height: 21px; font-variant-numeric: tabular-nums; }
#result { display: flex; flex-wrap: wrap; gap: 16px; align-items: center; margin-top: 12px; }
audio { flex: 1 1 320px; height: 42px; }
a { color: var(--blue); }
@media (max-width: 560px) { main { margin: 0; border: 0; border-radius: 0; } }
"""

SCRIPT = """'use strict';
const HEADER_BYTES = 44;  // of the WAV files that the server makes
const FULL_SCALE = 32768;
const part = (id) => document.getElementById(id);
let running = null;  // what stops the sound under way

class Player {
  // Plays samples as they come, each piece right behind the one before. To be made while a click is handled: browsers
  // let no sound begin by itself.
  constructor() {
    this.context = new AudioContext();
    this.end = 0;
  }
  play(samples, rate) {
    const buffer = this.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(Float32Array.from(samples, (step) => step / FULL_SCALE), 0);
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

function joined(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let first = 0;
  for (const piece of pieces) {
    all.set(piece, first);
    first += piece.length;
  }
  return all;
}

function steps(bytes) {
  // 16-bit samples, little-endian.
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Int16Array.from({length: bytes.length >> 1}, (_, i) => view.getInt16(2 * i, true));
}

function finished(wav) {
  // The file with its length in place of "unknown".
  const view = new DataView(wav.buffer);
  view.setUint32(4, wav.length - 8, true);
  view.setUint32(HEADER_BYTES - 4, wav.length - HEADER_BYTES, true);
  return new Blob([wav], {type: 'audio/wav'});
}

function showError(message) {
  part('error').textContent = message;
  part('error').hidden = !message;
}

function isSpeaking(yes) {
  part('speak').disabled = yes;
  part('stop').disabled = !yes;
}

async function errorOf(reply) {
  const values = await reply.json().catch(() => null);
  return new Error(values?.error?.message ?? `The server answered with ${reply.status}.`);
}

async function* eventsOf(reply) {
  // What the server sends, event by event.
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (text + value).split('\\n\\n');
    text = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice('data: '.length));
  }
}

async function fetchSpeech(signal, onSound) {
  // The whole file; its samples go to onSound as they come.
  const began = performance.now();
  const passedSec = () => (performance.now() - began) / 1000;
  const values = {input: part('text').value, voice: part('voice').value, stream_format: 'sse',
                  temperature: Number(part('temperature').value), seed: Number(part('seed').value)};
  const reply = await fetch('/v1/audio/speech',
    {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(values), signal});
  if (!reply.ok) throw await errorOf(reply);
  const rate = Number(reply.headers.get('X-Slmkit-Sample-Rate'));
  const pieces = [];
  let firstSec = null, ending = null;
  for await (const event of eventsOf(reply)) {
    if (event.type === 'error') throw new Error(event.error.message);
    if (event.type === 'speech.audio.done') ending = event;
    if (event.type !== 'speech.audio.delta') continue;
    const bytes = Uint8Array.from(atob(event.audio), (letter) => letter.charCodeAt(0));
    firstSec ??= passedSec();
    onSound(steps(pieces.length ? bytes : bytes.subarray(HEADER_BYTES)), rate);
    pieces.push(bytes);
    part('status').textContent = 'Speaking';
  }
  if (!ending) throw new Error('The server has ended the answer too early.');
  const limit = ending.limit ? `, cut at a limit (${ending.limit})` : '';
  part('status').textContent = `${ending.seconds.toFixed(2)} s of speech${limit} in ${passedSec().toFixed(2)} s, ` +
    `the first sound after ${firstSec.toFixed(2)} s`;
  return finished(joined(pieces));
}

async function speak() {
  showError('');
  if (!part('text').value.trim()) {
    showError('There is no text to speak.');
    part('text').focus();
    return;
  }
  stop();
  const abort = new AbortController();
  const mine = running = {abort, player: new Player()};
  isSpeaking(true);
  part('result').hidden = true;
  part('status').textContent = 'Waiting';
  try {
    const blob = await fetchSpeech(abort.signal, (samples, rate) => mine.player.play(samples, rate));
    URL.revokeObjectURL(part('audio').src);
    part('audio').src = part('keep').href = URL.createObjectURL(blob);
    part('result').hidden = false;
  } catch (error) {
    mine.player.stop();
    part('status').textContent = '';
    if (error.name !== 'AbortError') showError(error.message);
  } finally {
    if (running === mine) isSpeaking(false);
  }
}

function stop() {
  running?.abort.abort();
  running?.player.stop();
  running = null;
  isSpeaking(false);
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
      ['/v1/audio/voices', '/v1/models'].map((path) => fetch(path).then((reply) => reply.json())));
    for (const voice of voices.voices) part('voice').add(new Option(voice.name, voice.id));
    part('model').textContent = document.title = models.data[0].id;
  } catch (error) {
    showError(`The server cannot be reached: ${error.message}`);
  }
}

start();
"""

FILES = {
    "/": ("text/html; charset=utf-8", HTML),
    "/page.css": ("text/css; charset=utf-8", CSS),
    "/page.js": ("text/javascript; charset=utf-8", SCRIPT),
}
