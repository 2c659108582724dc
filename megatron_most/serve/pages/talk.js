"use strict";
// One conversation with the server this page came from. Nothing is kept when the page is closed.

const at = (id) => document.getElementById(id);
const turns = []; // as the server takes them: {role, content}
let heard = null; // {data, url}: the recording that goes with the next message
let able = { voices: [], hears: false, sample_rate: 16000, audio_s: 60, body_bytes: 16 << 20 };
let asking = null; // an AbortController while an answer comes
let recorder = null;
let follows = true, seenTop = 0; // whether the newest answer is kept in view, and where the reader was

async function learn() {
  const answer = await fetch("/v1/models");
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const model = (await answer.json()).data[0];
  able = model.most;
  at("model").textContent = model.id;
  const can = [able.hears ? "hears" : "does not hear", able.voices.length ? "speaks" : "does not speak"];
  at("about").textContent = `It reads and writes, ${can.join(", ")}.`;
  at("most").max = able.max_tokens;
  at("most").value = Math.min(256, able.max_tokens);
  at("choose").hidden = !able.hears;
  at("record").hidden = !able.hears || !navigator.mediaDevices;
  at("aloud").hidden = !able.voices.length;
  at("voice").hidden = able.voices.length < 2;
  for (const voice of able.voices) at("voice").append(new Option(voice, voice));
}

function wrong(error) {
  at("wrong").textContent = error ? sentence(error.message || String(error)) : "";
  at("wrong").hidden = !error;
}

function sentence(words) { // where in the request it is wrong is for programs
  const bare = words.replace(/^messages[\w.[\]]*: /, "").replace(/^max_tokens: /, "tokens: ");
  return bare[0].toUpperCase() + bare.slice(1) + (/[.!?]$/.test(bare) ? "" : ".");
}

function size(bytes) {
  return `${Number((bytes / 1e6).toPrecision(3))} MB`;
}

// --- sound ---

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function wavFile(samples, rate) { // Int16Array -> a WAV file
  const head = new DataView(new ArrayBuffer(44));
  const put = (place, text) => [...text].forEach((c, i) => head.setUint8(place + i, c.charCodeAt(0)));
  const size = samples.length * 2;
  put(0, "RIFF"); head.setUint32(4, 36 + size, true); put(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, rate, true); head.setUint32(28, rate * 2, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  put(36, "data"); head.setUint32(40, size, true);
  return new Blob([head, samples], { type: "audio/wav" });
}

function seconds(url) { // that a sound lasts, NaN where the browser cannot tell
  return new Promise((resolve) => {
    const audio = new Audio();
    audio.preload = "metadata";
    audio.onloadedmetadata = () => resolve(audio.duration);
    audio.onerror = () => resolve(NaN);
    setTimeout(resolve, 3000, NaN);
    audio.src = url;
  });
}

async function choose(file) { // a large one would take the browser's memory in base64, only for the server to refuse it
  wrong(null);
  forget();
  const most = able.body_bytes / 4 * 3; // base64 makes 4 bytes of 3
  if (file.size > most) throw new Error(`This file has ${size(file.size)}; the server takes at most ${size(most)}.`);
  const url = URL.createObjectURL(file), lasts = await seconds(url);
  URL.revokeObjectURL(url);
  if (Number.isFinite(lasts) && lasts > able.audio_s + 1) { // browsers tell some lengths by guess
    throw new Error(`This sound lasts ${Math.round(lasts)} s; the server hears at most ${able.audio_s} s.`);
  }
  await hear(file);
}

async function hear(blob) { // what was recorded or chosen goes with the next message
  const bytes = new Uint8Array(await blob.arrayBuffer());
  heard = { data: base64(bytes), url: URL.createObjectURL(blob) };
  at("heard").src = heard.url;
  at("sound").hidden = false;
}

function forget() {
  heard = null;
  at("file").value = "";
  at("heard").removeAttribute("src");
  at("sound").hidden = true;
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    stream.getTracks().forEach((track) => track.stop());
    recorder = null;
    at("record").textContent = "Record";
    at("record").classList.remove("on");
    try {
      // As samples: what browsers record is in containers of their own.
      const context = new OfflineAudioContext(1, 1, able.sample_rate);
      const sound = await context.decodeAudioData(await new Blob(parts).arrayBuffer());
      const samples = Int16Array.from(sound.getChannelData(0), (x) => Math.max(-1, Math.min(1, x)) * 32767);
      await hear(wavFile(samples, sound.sampleRate));
    } catch (error) { wrong(error); }
  };
  recorder.start();
  setTimeout(() => recorder && recorder.stop(), able.audio_s * 1000);
  at("record").textContent = "Stop recording";
  at("record").classList.add("on");
}

// --- what is in view ---

function keepUp() {
  if (!follows) return;
  at("talk").scrollTop = at("talk").scrollHeight;
  seenTop = at("talk").scrollTop;
}

function notice() { // only the reader moves up; what grows, or makes room, does not
  const { scrollTop, scrollHeight, clientHeight } = at("talk"), left = scrollHeight - clientHeight - scrollTop;
  if (scrollTop < seenTop && left > 1) follows = false;
  else if (left < 24) follows = true;
  seenTop = scrollTop;
}

// --- a turn on the page ---

function show(role, words, sound) {
  const li = document.createElement("li");
  li.className = role;
  const who = Object.assign(document.createElement("p"), { className: "who", textContent: role === "user" ? "You" : "Model" });
  const text = Object.assign(document.createElement("p"), { className: "words", textContent: words });
  const tokens = Object.assign(document.createElement("div"), { className: "tokens" });
  li.append(who, text);
  const experts = Object.assign(document.createElement("p"), { className: "who experts" });
  if (role === "assistant") li.append(tokens, experts);
  if (sound) li.append(player(sound));
  at("turns").append(li);
  follows = true;
  keepUp();
  return { li, text, tokens, experts };
}

function player(url) {
  const audio = document.createElement("audio");
  audio.controls = true;
  audio.src = url;
  return audio;
}

function showExperts(place, counts, token) { // how many tokens each group of experts has worked on
  counts.set(token.experts, (counts.get(token.experts) || 0) + 1);
  place.textContent = [...counts].map(([name, count]) => `${count} by ${name} experts`).join(", ");
}

function showToken(place, token) {
  const span = document.createElement("span");
  span.className = `token ${token.modality}`;
  span.textContent = token.text.replaceAll("\n", "\u21b5").replaceAll("\uff5c", "|").replaceAll("\u2581", "_") || "\u00b7";
  span.title = `id ${token.id}, ${token.modality}, ${token.experts} experts`;
  const isAtEnd = place.scrollHeight - place.clientHeight - place.scrollTop < 8;
  place.append(span);
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

// --- asking ---

async function* events(answer) { // of a stream of server-sent events
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const whole = left.split("\n\n");
    left = whole.pop();
    for (const event of whole) {
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice(6));
    }
  }
}

async function ask(content) {
  const body = {
    messages: [...turns, { role: "user", content }],
    stream: true,
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("most").value),
  };
  if (able.voices.length && at("speak").checked) {
    body.modalities = ["text", "audio"];
    body.audio = { voice: at("voice").value || able.voices[0], format: "pcm16" };
  }
  const whole = new Blob([JSON.stringify(body)]);
  if (whole.size > able.body_bytes) {
    const most = `${size(able.body_bytes)}, the most that the server takes`;
    throw new Error(`The conversation with its sounds is larger than ${most}: load the page anew.`);
  }
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: whole,
    signal: asking.signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

async function follow(answer) {
  const turn = show("assistant", "");
  const sound = [], counts = new Map();
  const said = []; // the answer as the server takes it back with the next message
  let words = "", why = "";
  try {
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      words += choice.delta.content || "";
      turn.text.textContent = words;
      if (choice.delta.audio) sound.push(bytesOf(choice.delta.audio.data));
      for (const token of (event.most || {}).tokens || []) {
        showToken(turn.tokens, token);
        showExperts(turn.experts, counts, token);
      }
      add(said, choice.delta.content || "", ((event.most || {}).tokens || []).filter((token) => token.is_unit));
      why = choice.finish_reason || why;
    }
  } finally {
    if (sound.length) {
      const whole = new Uint8Array(await new Blob(sound).arrayBuffer());
      turn.li.append(player(URL.createObjectURL(wavFile(new Int16Array(whole.buffer), able.sample_rate))));
    }
    turn.li.dataset.end = why || "stopped";
  }
  return said;
}

function add(said, words, units) { // to the parts of an answer: words and units in order
  for (const [type, text] of [["text", words], ["units", units.map((token) => token.text).join("")]]) {
    if (!text) continue;
    if (!said.length || said[said.length - 1].type !== type) said.push({ type, [type]: "" });
    said[said.length - 1][type] += text;
  }
}

async function send(event) {
  event.preventDefault();
  const words = at("words").value.trim();
  if (asking || (!words && !heard)) return;
  wrong(null);
  const content = [];
  if (words) content.push({ type: "text", text: words });
  if (heard) content.push({ type: "input_audio", input_audio: { data: heard.data, format: "wav" } });
  const shown = show("user", words, heard && heard.url);
  asking = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  try {
    const answer = await ask(content);
    at("words").value = "";
    forget();
    const said = await follow(answer);
    const whole = said.filter((part) => part.type === "units" || part.text.trim());
    if (whole.length) turns.push({ role: "user", content }, { role: "assistant", content: whole });
  } catch (error) {
    if (error.name !== "AbortError") { wrong(error); shown.li.classList.add("refused"); }
  } finally {
    asking = null;
    at("send").disabled = false;
    at("stop").hidden = true;
  }
}

at("talk").addEventListener("scroll", notice);
const sizes = new ResizeObserver(keepUp); // of what is said, and of the room that the form leaves for it
sizes.observe(at("turns"));
sizes.observe(at("talk"));
at("ask").addEventListener("submit", send);
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) send(event);
});
at("file").addEventListener("change", () => {
  const file = at("file").files[0];
  if (file) choose(file).catch((error) => { forget(); wrong(error); });
});
at("forget").addEventListener("click", forget);
at("record").addEventListener("click", () => record().catch(wrong));
at("stop").addEventListener("click", () => asking && asking.abort());
learn().catch(wrong);
