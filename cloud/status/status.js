"use strict";
// Reads /metrics every two seconds and shows the differences: the server keeps no history.

const PERIOD_MS = 2000, KEPT = 60, WIDTH = 360, HEIGHT = 150, LEFT = 42, BOTTOM = 18;
const NS = "http://www.w3.org/2000/svg";
const histories = new Map();  // "name/version" -> samples, the last KEPT + 1
let token = "";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) throw new Error("token");
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer;
}

// The text format of Prometheus: name{label="value",...} number
function parseMetrics(text) {
  const models = new Map();
  for (const line of text.split("\n")) {
    const found = /^(\w+)\{(.*)\} (\S+)$/.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...found[2].matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    const key = `${labels.model}/${labels.version}`;
    if (!models.has(key)) models.set(key, { values: {}, failed: 0, durations: [], batches: [] });
    const model = models.get(key), value = Number(found[3]);
    if (found[1] === "edgesdk_request_seconds_bucket") model.durations.push([Number(labels.le.replace("+Inf", "Infinity")), value]);
    else if (found[1] === "edgesdk_batch_rows_bucket") model.batches.push([labels.le, value]);
    else if (found[1] === "nv_inference_request_failure") model.failed += value;
    else model.values[found[1]] = value;
  }
  return models;
}

// Of what was answered between two samples, in ms: linear within the histogram's bounds, as Prometheus does it.
function quantile(before, after, share) {
  const counts = after.durations.map(([bound, count], i) => [bound, count - (before ? before.durations[i][1] : 0)]);
  const total = counts.length ? counts[counts.length - 1][1] : 0;
  if (!total) return null;
  let low = 0, below = 0;
  for (const [bound, count] of counts) {
    if (count >= share * total) {
      if (bound === Infinity) return low * 1e3;
      return (low + (bound - low) * (share * total - below) / (count - below)) * 1e3;
    }
    [low, below] = [bound, count];
  }
  return null;
}

function number(value, unit = "") {
  if (value === null || !Number.isFinite(value)) return "–";
  const digits = value >= 100 || value === Math.round(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits) + unit;
}

function element(svg, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  svg.append(made);
}

function frame(svg, top, title) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", title);
  for (const part of [0, 0.5, 1]) {
    const y = (HEIGHT - BOTTOM) - part * (HEIGHT - BOTTOM - 10);
    element(svg, "line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y, y2: y });
    element(svg, "text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, number(part * top));
  }
}

function lines(svg, series, title) {
  const all = Object.values(series).flat().filter((value) => value !== null);
  const top = Math.max(...all, 0) * 1.1 || 1;
  frame(svg, top, `${title}; now ${Object.entries(series).map(([name, values]) => `${name} ${number(values.at(-1))}`).join(", ")}`);
  for (const [name, values] of Object.entries(series)) {
    let path = "", drawing = false;
    values.forEach((value, i) => {
      if (value === null) { drawing = false; return; }
      const x = WIDTH - (values.length - 1 - i) * (WIDTH - LEFT) / KEPT;
      const y = (HEIGHT - BOTTOM) - value / top * (HEIGHT - BOTTOM - 10);
      path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${drawing ? "" : "h.01"}`;
      drawing = true;
    });
    element(svg, "path", { class: `line ${name}`, d: path || "M0 0" });
  }
  element(svg, "text", { x: LEFT, y: HEIGHT - 4 }, "2 min ago");
  element(svg, "text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, "now");
}

function bars(svg, buckets, title) {
  const counts = buckets.map(([bound, count], i) => [bound, count - (i ? buckets[i - 1][1] : 0)]);
  const shown = counts.slice(0, Math.max(1, counts.findLastIndex(([, count]) => count > 0) + 1));
  const top = Math.max(...shown.map(([, count]) => count), 1);
  frame(svg, top, `${title}: ${shown.map(([bound, count]) => `up to ${bound}: ${count}`).join(", ")}`);
  const step = (WIDTH - LEFT) / shown.length;
  shown.forEach(([bound, count], i) => {
    const height = count / top * (HEIGHT - BOTTOM - 10);
    element(svg, "rect", { class: "bar", x: LEFT + i * step + 2, width: Math.max(step - 4, 1), y: HEIGHT - BOTTOM - height, height });
    const low = i ? Number(shown[i - 1][0]) + 1 : 1;
    const label = bound === "+Inf" ? `from ${low}` : Number(bound) === low ? `${low}` : `${low}–${Number(bound)}`;
    element(svg, "text", { x: LEFT + (i + 0.5) * step, y: HEIGHT - 4, "text-anchor": "middle" }, label);
  });
}

async function section(key) {
  const id = `model-${key}`;
  const found = document.getElementById(id);
  if (found) return found;
  const [name, version] = key.split("/");
  const about = await (await ask(`v2/models/${encodeURIComponent(name)}/versions/${version}`)).json();
  const made = document.getElementById("model").content.cloneNode(true).firstElementChild;
  made.id = id;
  made.querySelector("h2").textContent = `${name}, version ${version}`;
  const tensor = (each) => `${each.name} ${each.datatype} [${each.shape.join(", ")}]`;
  const bundle = about.properties.edgesdk_bundle_id;
  const held = bundle ? `${about.properties.edgesdk_party} of bundle ${bundle.slice(0, 12)}; ` : "";
  made.querySelector(".about").textContent = `${held}${about.inputs.map(tensor).join(", ")} → ${about.outputs.map(tensor).join(", ")}; ${about.platform}`;
  document.getElementById("models").append(made);
  return made;
}

async function show(key, sample) {
  const history = histories.get(key) ?? [];
  histories.set(key, history);
  if (history.length && sample.values.nv_inference_count < history.at(-1).values.nv_inference_count) history.length = 0;  // restarted
  history.push(sample);
  if (history.length > KEPT + 1) history.shift();
  const pairs = history.slice(1).map((after, i) => [history[i], after]);
  const change = ([before, after], name) => after.values[name] - before.values[name];
  const rate = pairs.map((pair) => change(pair, "nv_inference_request_success") / ((pair[1].at - pair[0].at) / 1e3));
  const p50 = pairs.map((pair) => quantile(...pair, 0.5)), p99 = pairs.map((pair) => quantile(...pair, 0.99));
  const compute = pairs.map((pair) => change(pair, "nv_inference_compute_infer_duration_us") / change(pair, "nv_inference_request_success") / 1e3);
  const made = await section(key), last = (values) => values.at(-1) ?? null;
  const tile = (name, text) => { made.querySelector(`[data-tile="${name}"]`).textContent = text; };
  const plot = (name) => made.querySelector(`[data-plot="${name}"]`);
  tile("rate", number(last(rate)));
  tile("p50", number(last(p50), " ms"));
  tile("p99", number(last(p99), " ms"));
  tile("compute", number(last(compute), " ms"));
  tile("waiting", number(sample.values.nv_inference_pending_request_count));
  tile("failed", number(sample.failed));
  lines(plot("latency"), { p50, p99 }, "Request duration in ms");
  lines(plot("rate"), { rate }, "Answered requests a second");
  bars(plot("batches"), sample.batches, "Batches by rows");
}

function health(ok, text) {
  const shown = document.getElementById("health");
  shown.className = ok ? "ok" : "bad";
  shown.textContent = text;
}

async function look() {
  try {
    const ready = await (await ask("v2/health/ready")).json();
    const server = await (await ask("v2")).json();
    document.getElementById("version").textContent = server.version;
    const at = performance.now();
    const models = parseMetrics(await (await ask("metrics")).text());
    for (const [key, sample] of models) await show(key, { ...sample, at });
    for (const key of histories.keys()) if (!models.has(key)) { histories.delete(key); document.getElementById(`model-${key}`)?.remove(); }
    health(ready.ready, ready.ready ? `ready, ${models.size} model${models.size === 1 ? "" : "s"}` : "not ready");
  } catch (error) {
    if (error.message === "token") {
      document.getElementById("login").hidden = false;
      health(false, "a token is needed");
      return;
    }
    health(false, `no answer: ${error.message}`);
  }
  setTimeout(look, PERIOD_MS);
}

document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = document.getElementById("token").value.trim();  // kept in this page alone
  document.getElementById("login").hidden = true;
  look();
});
look();
