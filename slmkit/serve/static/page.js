'use strict';
const HEADER_BYTES = 44;  // of the WAV files that the server makes
const FULL_SCALE = 32768;
const RECORD_MARGIN_SEC = 0.5;  // a recording is stopped so much before it would be too long
const part = (id) => document.getElementById(id);
const SETTINGS = [  // of an answer; the limits are those of the server
  {name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05, value: 0},
  {name: 'top_p', label: 'Top p', min: 0.05, max: 1, step: 0.05, value: 1},
  {name: 'top_k', label: 'Top k (0: all)', min: 0, max: 1000000, step: 1, value: 0},
  {name: 'repetition_penalty', label: 'Repetition penalty', min: 1, max: 10, step: 0.05, value: 1},
  {name: 'seed', label: 'Seed', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value: 0},
  {name: 'max_sec', label: 'Longest, seconds', min: 0.1, max: 86400, step: 0.1, value: 10},
];
const TASKS = {
  read: {path: '/v1/audio/speech', field: 'input', label: 'Text', most: 'max_chars',
         placeholder: 'Type a sentence', examples: [
    'A small boat crossed the lake.',
    'The river froze over one winter night, and in the morning the children walked to the other side.',
    'Are you sure? I had thought that nobody lived here.',
  ]},
  ask: {path: '/v1/answer', field: 'question', label: 'Question', most: 'max_question_chars',
        placeholder: 'Type a question', examples: [
    'Who are you, and what do you do all day?',
    'You are the captain of a ship. Where are we going?',
    'What is the capital of France?',
  ]},
};
const ANSWERS = ['', 'second-'];  // how the ids of each begin
let model = null;  // as /v1/models describes it
let own = null;  // the speaker vector of the visitor's recording; it is kept here alone
let recorder = null;
let running = null;  // the requests that are answered, and what plays the first

class Player {
  // Plays samples as they come, each piece right behind the one before. To be made while a click is handled: browsers
  // let no sound begin by itself.
  constructor() {
    this.context = new AudioContext();
    this.end = 0;
  }
  play(samples, rate) {
    if (this.context.state === 'closed') return;  // another sound was begun in the meantime
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

const nameOf = (answer, setting) => answer ? `${answer}${setting.name}` : setting.name;

function makeSettings() {
  ANSWERS.forEach((answer, number) => {
    const place = part(number ? 'second' : 'first');
    if (number) {
      const cell = place.appendChild(Object.assign(document.createElement('div'), {className: 'second-voice'}));
      cell.append(Object.assign(document.createElement('label'), {textContent: 'Voice', htmlFor: 'second-voice'}),
                  Object.assign(document.createElement('select'), {id: 'second-voice'}));
    }
    for (const setting of SETTINGS) {
      const {min, max, step} = setting;
      const value = number && setting.name === 'seed' ? 1 : setting.value;
      const id = nameOf(answer, setting), cell = place.appendChild(document.createElement('div'));
      cell.append(Object.assign(document.createElement('label'), {textContent: setting.label, htmlFor: id}),
                  Object.assign(document.createElement('input'), {type: 'number', id, min, max, step, value}));
    }
  });
}

const taskOf = () => TASKS[part('ask').checked ? 'ask' : 'read'];
const isComparing = () => part('compare').checked;

function showTask() {
  const {label, placeholder, examples, most} = taskOf();
  part('text').maxLength = model[most];
  part('text-label').textContent = label;
  part('text').placeholder = placeholder;
  part('examples').replaceChildren(...examples.filter((text) => text.length <= model[most]).map((text) => {
    const button = Object.assign(document.createElement('button'), {type: 'button', textContent: text});
    button.addEventListener('click', () => { part('text').value = text; showLength(); });
    return button;
  }));
  showLength();
}

function showComparing() {
  part('second').hidden = part('second').disabled = !isComparing();
  part('second-answer').hidden = !isComparing();
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

function bodyOf(answer) {
  const body = {[taskOf().field]: part('text').value, response_format: 'wav', stream_format: 'sse', progress: true};
  const voice = part(`${answer}voice`).selectedOptions[0];
  body.voice = voice.className === 'own' ? {speaker: own} : voice.value;
  for (const setting of SETTINGS) body[setting.name] = Number(part(nameOf(answer, setting)).value);
  return body;
}

async function fetchSpeech(path, body, answer, signal, onSound) {
  // The whole file; its samples go to onSound as they come.
  const began = performance.now(), status = part(`${answer}status`), progress = part(`${answer}progress`);
  const passedSec = () => (performance.now() - began) / 1000;
  const response = await fetch(path,
    {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body), signal});
  if (!response.ok) throw await errorOf(response);
  const rate = Number(response.headers.get('X-Slmkit-Sample-Rate'));
  const pieces = [];
  let firstSec = null, ending = null, heardSec = 0;
  for await (const event of eventsOf(response)) {
    if (event.type === 'error') throw new Error(event.error.message);
    if (event.type === 'speech.queue') {
      status.textContent = event.place ? `Waiting, number ${event.place} in the queue` : 'Beginning';
    }
    if (event.type === 'speech.audio.done') ending = event;
    if (event.type !== 'speech.audio.delta') continue;
    const bytes = Uint8Array.from(atob(event.audio), (letter) => letter.charCodeAt(0));
    firstSec ??= passedSec();
    const samples = samplesOf(pieces.length ? bytes : bytes.subarray(HEADER_BYTES));
    if (samples.length) onSound(samples, rate);
    pieces.push(bytes);
    heardSec += samples.length / rate;
    status.textContent = `Speaking, ${heardSec.toFixed(1)} s so far`;
    progress.max = body.max_sec;
    progress.value = heardSec;
  }
  if (!ending) throw new Error('The connection ended before the speech was whole.');
  const why = {limit: ' (stopped at the limit: ', runaway: ' (stopped, it would not have ended: '}[ending.reason];
  const limit = why ? `${why}${ending.limit})` : '';
  status.textContent = `${ending.seconds.toFixed(2)} s of speech${limit}, ready after ` +
    `${passedSec().toFixed(2)} s, first sound after ${firstSec.toFixed(2)} s`;
  return {file: await wavFile(pieces), text: ending.text};
}

async function answerOnce(answer, path, body, signal, onSound) {
  // One of the answers, from the request to what is shown of it.
  const progress = part(`${answer}progress`), audio = part(`${answer}audio`), words = part(`${answer}words`);
  part(`${answer}result`).hidden = true;
  part(`${answer}status`).textContent = 'Waiting';
  progress.removeAttribute('value');  // nobody knows yet for how long
  progress.hidden = false;
  try {
    const {file, text} = await fetchSpeech(path, body, answer, signal, onSound);
    URL.revokeObjectURL(audio.src);
    audio.src = part(`${answer}save`).href = URL.createObjectURL(file);
    words.textContent = text ?? '';
    words.hidden = !text;
    part(`${answer}result`).hidden = false;
  } catch (error) {
    part(`${answer}status`).textContent = '';
    throw error;
  } finally {
    progress.hidden = true;
  }
}

function firstMistake(answers) {
  return answers.flatMap((answer) => SETTINGS.map((setting) => part(nameOf(answer, setting))))
    .find((input) => !input.checkValidity());
}

async function speak() {
  showError('');
  if (!part('text').value.trim()) {
    showError(part('ask').checked ? 'Type a question first.' : 'Type a sentence first.');
    part('text').focus();
    return;
  }
  const answers = isComparing() ? ANSWERS : ANSWERS.slice(0, 1);
  const wrong = firstMistake(answers);
  if (wrong) {
    part('settings').open = true;
    showError(`${wrong.labels[0].textContent}: ${wrong.validationMessage}`);
    wrong.focus();
    return;
  }
  stop();
  const abort = new AbortController();
  const mine = running = {abort, player: new Player()};
  showSpeaking(true);
  const {path} = taskOf();
  // The first is heard at once; two voices at a time would be none.
  const done = await Promise.allSettled(answers.map((answer, number) => answerOnce(
    answer, path, bodyOf(answer), abort.signal, (samples, rate) => number || mine.player.play(samples, rate))));
  const failed = done.filter(({reason}) => reason && reason.name !== 'AbortError');
  if (done[0].status === 'rejected') mine.player.stop();
  if (running !== mine) return;
  if (failed.length) showError(failed[0].reason.message);
  showSpeaking(false);
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

function setOwnVoice(speaker) {
  // Offered among the voices, and chosen; null: forgotten.
  own = speaker;
  for (const answer of ANSWERS) {
    const voices = part(`${answer}voice`), old = [...voices.options].find((option) => option.className === 'own');
    if (!speaker) old?.remove();
    else if (!old) voices.add(Object.assign(new Option('Your recording', ''), {className: 'own'}), 0);
    if (speaker && !answer) voices.selectedIndex = 0;
  }
  part('forget').disabled = !speaker;
}

async function useRecording(sound) {
  showError('');
  part('own-status').textContent = 'Measuring';
  try {
    if (sound.size > model.recording.max_bytes) {
      throw new Error(`The file is too large; at most ${model.recording.max_bytes} bytes can be sent.`);
    }
    const response = await fetch('/v1/audio/speaker', {method: 'POST', body: sound});
    if (!response.ok) throw await errorOf(response);
    const {speaker, seconds} = await response.json();
    setOwnVoice(speaker);
    part('own-status').textContent = `Measured ${seconds.toFixed(1)} s. Your voice is among the voices now.`;
  } catch (error) {
    part('own-status').textContent = '';
    showError(error.message);
  }
}

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let microphone;
  try {
    microphone = await navigator.mediaDevices.getUserMedia({audio: true});
  } catch (error) {
    showError(`The microphone cannot be used: ${error.message}`);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(microphone);
  recorder.addEventListener('dataavailable', (event) => parts.push(event.data));
  recorder.addEventListener('stop', () => {
    const {mimeType} = recorder;
    recorder = null;
    microphone.getTracks().forEach((track) => track.stop());
    part('record').textContent = 'Record';
    useRecording(new Blob(parts, {type: mimeType}));
  });
  recorder.start();
  part('record').textContent = 'Stop';
  part('own-status').textContent = 'Recording';
  const mine = recorder;
  setTimeout(() => recorder === mine && mine.stop(), 1000 * (model.recording.max_sec - RECORD_MARGIN_SEC));
}

function forget() {
  setOwnVoice(null);
  part('recording').value = '';
  part('own-status').textContent = 'Forgotten.';
}

function showModel(voices) {
  for (const answer of ANSWERS) {
    for (const voice of voices) part(`${answer}voice`).add(new Option(voice.name, voice.id));
    const longest = part(nameOf(answer, {name: 'max_sec'}));
    longest.max = model.max_sec;
    longest.min = Math.min(longest.min, model.max_sec);
    longest.step = 'any';
    longest.value = model.max_sec;
  }
  part('model').textContent = document.title = model.id;
  if (model.recording) {
    const {min_sec: least, max_sec: most} = model.recording;
    part('own-note').textContent = `${least} to ${most} seconds of one person speaking. The server measures the ` +
      'voice and keeps nothing; this page has the result until it is closed.';
    part('record').hidden = !(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);
    part('own').hidden = false;
  }
}

async function start() {
  makeSettings();
  part('form').addEventListener('submit', (event) => { event.preventDefault(); speak(); });
  part('stop').addEventListener('click', stop);
  part('audio').addEventListener('play', () => running?.player.stop());
  part('second-audio').addEventListener('play', () => running?.player.stop());
  part('compare').addEventListener('change', showComparing);
  part('recording').addEventListener('change', ({target}) => target.files[0] && useRecording(target.files[0]));
  part('record').addEventListener('click', record);
  part('forget').addEventListener('click', forget);
  part('text').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) part('form').requestSubmit();
  });
  try {
    const [voices, models] = await Promise.all(
      ['/v1/audio/voices', '/v1/models'].map((path) => fetch(path).then((response) => response.json())));
    model = models.data[0];
    showModel(voices.voices);
    for (const task of ['read', 'ask']) part(task).addEventListener('change', showTask);
    part('text').addEventListener('input', showLength);
    showTask();
    showComparing();
  } catch (error) {
    showError(`The server cannot be reached: ${error.message}`);
  }
}

start();
