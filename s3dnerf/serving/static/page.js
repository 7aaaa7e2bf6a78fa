// The page of `s3dnerf demo`. Its controls are made from GET /v1/options.
import { startLive } from "./live.js";

const find = (id) => document.getElementById(id);
const POLL_MS = 400;
const STILL_DELAY_MS = 150;
const files = { image: null, audio: null };
let others = []; // further pictures of the same person
let uploaded = null; // the picture of `files.image` on the server: a promise of its id
let job = null;
let stillTimer = 0;
let stillNumber = 0;

function show(id, text) {
  find(id).textContent = text;
}

// Show what in the picture limits the video.
function showNotes(notes) {
  show("notes", notes.map((note) => `The picture: ${note}.`).join(" "));
}

function fail(error) {
  show("message", error.message || String(error));
}

// Send a request; its error is the one sentence of the server.
async function send(method, address, body) {
  const response = await fetch(address, { method, body });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.error || `The server answers ${response.status}.`);
}

// Run an action of a button, and show why it fails.
function act(id, event, action) {
  find(id).addEventListener(event, async (details) => {
    show("message", "");
    try {
      await action(details);
    } catch (error) {
      fail(error);
    }
  });
}

function setFile(kind, file, more = []) {
  files[kind] = file;
  const shown = find(kind === "image" ? "portrait" : "heard");
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.classList.remove("hidden");
  if (kind === "image") {
    uploaded = null;
    showNotes([]);
    others = more;
    show("others", more.length ? `and ${more.length} more of the same person` : "");
    find("still").removeAttribute("src");
  }
}

async function takeExample(kind, address, name) {
  const data = await (await send("GET", address)).blob();
  setFile(kind, new File([data], name, { type: data.type }));
}

function appendPictures(form) {
  for (const picture of [files.image, ...others]) form.append("image", picture);
}

// Upload the picture once for stills and live sessions.
function uploadPicture() {
  if (!files.image) throw new Error("Choose a picture first.");
  if (!uploaded) {
    const form = new FormData();
    appendPictures(form);
    uploaded = send("POST", "v1/portraits", form).then(async (response) => {
      const { id, notes } = await response.json();
      showNotes(notes);
      return id;
    });
    uploaded.catch(() => { uploaded = null; });
  }
  return uploaded;
}

function addControl(option) {
  const label = document.createElement("label");
  label.textContent = option.name.replaceAll("_", " ");
  label.htmlFor = `option-${option.name}`;
  const help = document.createElement("small");
  help.textContent = option.help;
  let control;
  if (option.kind === "choice") {
    control = document.createElement("select");
    for (const choice of option.choices) {
      const chosen = choice === option.default;
      control.add(new Option(choice === "" ? "none" : choice, choice, chosen, chosen));
    }
  } else if (option.kind === "numbers") {
    control = document.createElement("div");
    control.className = "parts";
    option.default.forEach((value, index) => {
      const part = document.createElement("input");
      Object.assign(part, { type: "number", step: "any", value, title: option.parts[index] || "" });
      part.setAttribute("aria-label", `${option.name} ${option.parts[index] || index + 1}`);
      control.append(part);
    });
  } else {
    control = document.createElement("input");
    control.type = { text: "text", boolean: "checkbox" }[option.kind] || "number";
    if (control.type === "checkbox") control.checked = option.default;
    if (control.type === "number") {
      Object.assign(control, { min: option.minimum, max: option.maximum, step: option.kind === "integer" ? 1 : "any" });
    }
    if (control.type !== "checkbox") control.value = option.default ?? "";
  }
  control.id = `option-${option.name}`;
  control.dataset.option = option.name;
  find("options").append(label, control, help);
}

// Return the options that differ from nothing, as texts.
function readOptions() {
  const values = {};
  for (const control of find("options").querySelectorAll("[data-option]")) {
    const parts = [...control.querySelectorAll("input")].map((part) => part.value);
    let value = parts.length ? parts.join(" ") : control.value;
    if (control.type === "checkbox") value = String(control.checked);
    if (value !== "") values[control.dataset.option] = value;
  }
  return values;
}

async function render() {
  if (!files.image) throw new Error("Choose a picture first.");
  if (!files.audio) throw new Error("Choose or record speech first.");
  const form = new FormData();
  appendPictures(form);
  form.append("audio", files.audio);
  const motion = find("motion").files[0];
  if (motion) form.append("motion", motion);
  const background = find("background").files[0];
  if (background) form.append("background_image", background);
  for (const [name, value] of Object.entries(readOptions())) form.append(name, value);
  find("render").disabled = true;
  find("download").classList.add("hidden");
  show("status", "Uploading");
  try {
    job = (await (await send("POST", "v1/render", form)).json()).id;
    find("cancel").disabled = false;
    await watch(job);
  } finally {
    job = null;
    find("render").disabled = false;
    find("cancel").disabled = true;
  }
}

async function watch(id) {
  for (;;) {
    const state = await (await send("GET", `v1/render/${id}`)).json();
    find("progress").value = state.progress;
    showNotes(state.notes);
    show("status", state.frames ? `${state.status}: ${state.frames_done} of ${state.frames} frames` : state.status);
    if (state.status === "done") {
      find("result").src = state.result;
      find("download").href = state.result;
      find("download").classList.remove("hidden");
      return;
    }
    if (state.status === "failed") throw new Error(state.error);
    await new Promise((resume) => setTimeout(resume, POLL_MS));
  }
}

async function cancel() {
  if (!job) return;
  await send("DELETE", `v1/render/${job}`);
  show("status", "Cancelled");
}

async function showStill() {
  const number = ++stillNumber;
  const form = new FormData();
  form.append("portrait", await uploadPicture());
  for (const [name, value] of Object.entries(readOptions())) form.set(name, value);
  const up = (form.get("turn") || "0 0").split(" ")[1];
  form.set("turn", `${find("turn").value} ${up}`);
  const data = await (await send("POST", "v1/stills", form)).blob();
  if (number !== stillNumber) return; // the slider has moved on
  const still = find("still");
  if (still.src) URL.revokeObjectURL(still.src);
  still.src = URL.createObjectURL(data);
  still.dataset.turn = find("turn").value;
}

// Show the camera; the next click takes the picture.
async function useWebcam() {
  const finder = find("viewfinder");
  if (!finder.srcObject) {
    finder.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 720 } });
    finder.classList.remove("hidden");
    show("webcam", "Take picture");
    return;
  }
  if (!finder.videoWidth) return; // the camera shows nothing yet
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [finder.videoWidth, finder.videoHeight];
  canvas.getContext("2d").drawImage(finder, 0, 0);
  const data = await new Promise((resume) => canvas.toBlob(resume, "image/jpeg", 0.95));
  for (const track of finder.srcObject.getTracks()) track.stop();
  finder.srcObject = null;
  finder.classList.add("hidden");
  show("webcam", "Webcam");
  setFile("image", new File([data], "webcam.jpg", { type: data.type }));
}

let recorder = null;
async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    for (const track of stream.getTracks()) track.stop();
    setFile("audio", new File(parts, "recording.webm", { type: recorder.mimeType }));
    recorder = null;
    show("record", "Record");
  };
  recorder.start();
  show("record", "Stop recording");
}

let live = null;
function setLive(session) {
  live = session;
  find("start").disabled = Boolean(session);
  find("stop").disabled = find("interrupt").disabled = !session;
}

async function goLive() {
  find("start").disabled = true;
  try {
    const portrait = await uploadPicture();
    const options = readOptions();
    if (options.pose === "speech") options.pose = "idle"; // motion from speech would come six seconds late
    setLive(await startLive(find("live"), portrait, options, () => setLive(null)));
  } catch (error) {
    setLive(null);
    throw error;
  }
}

act("image", "change", (event) => {
  const [first, ...more] = event.target.files;
  if (first) setFile("image", first, more);
});
act("audio", "change", (event) => event.target.files[0] && setFile("audio", event.target.files[0]));
act("example-image", "click", () => takeExample("image", "examples/portrait.jpg", "portrait.jpg"));
act("example-audio", "click", () => takeExample("audio", "examples/speech.wav", "speech.wav"));
act("webcam", "click", useWebcam);
act("record", "click", record);
act("render", "click", render);
act("cancel", "click", cancel);
act("start", "click", goLive);
act("stop", "click", () => live && live.stop());
act("interrupt", "click", () => live && live.send("interrupt"));
find("turn").addEventListener("input", () => {
  show("turned", `${find("turn").value}°`);
  show("message", "");
  clearTimeout(stillTimer);
  stillTimer = setTimeout(() => showStill().catch(fail), STILL_DELAY_MS);
});
window.addEventListener("pagehide", () => live && live.stop());

send("GET", "v1/options")
  .then((response) => response.json())
  .then((options) => {
    options.forEach(addControl);
    document.body.dataset.ready = "yes";
  })
  .catch(fail);
