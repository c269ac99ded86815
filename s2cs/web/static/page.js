// Logs in, listens to the gateway while the page is looked at, and asks before it acts.
import { paint } from "./picture.js";
import { remember } from "./plot.js";
import { show } from "./sessions.js";
import { clock, el, keep, rate, say, svg, tone } from "./words.js";

const $ = (id) => document.getElementById(id);
let stream = null; // the event stream, while there is one
let last = null; // the last frame
let heard = 0; // the number of the last event that was told
let settle = null; // settles the question that was asked last

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-SciStream": "1" },
    body: JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

const complain = (text) => say($("fault"), text);

function logged(yes) {
  $("in").hidden = !yes;
  $("out").hidden = yes;
  $("who").hidden = !yes;
  if (!yes) {
    for (const id of ["ready", "link"]) $(id).hidden = true;
    if ($("ask").open) $("ask").close("no");
    last = null;
    for (const id of ["rows", "proxies", "events", "picture", "gauges", "backends"]) $(id).replaceChildren();
    $("token").focus();
  }
}

function listen() {
  if (stream || document.hidden) return;
  stream = new EventSource("/api/events");
  stream.onmessage = (event) => {
    complain("");
    link("");
    take(JSON.parse(event.data));
  };
  stream.addEventListener("over", (event) => {
    hush();
    logged(false);
    complain(JSON.parse(event.data).error ?? "You have been logged out.");
  });
  stream.onerror = async () => {
    if (stream?.readyState !== EventSource.CLOSED) {
      link("not connected; what is shown may be old");
      return;
    }
    hush();
    const answer = await fetch("/api/overview").catch(() => null);
    if (answer?.status === 401) logged(false);
    else {
      link("not connected; what is shown may be old");
      if (answer && !answer.ok) complain((await answer.json()).error);
      setTimeout(listen, 3000);
    }
  };
}

function hush() {
  stream?.close();
  stream = null;
}

function link(text) {
  $("link").hidden = !text;
  $("link").className = "pill bad";
  say($("link"), text);
}

function take(frame) {
  if ($("in").hidden) logged(true);
  last = frame;
  remember(frame.at, frame.sessions);
  head(frame);
  gauges(frame.capacity);
  paint($("picture"), frame);
  table();
  proxies(frame);
  events(frame.events);
}

const table = () => last && show(last, last.gateway.admin ? kill : null, table);

function head({ gateway, capacity }) {
  say($("name"), gateway.name);
  say($("version"), `SciStream ${gateway.version}`);
  document.title = `SciStream: ${gateway.name}`;
  say($("user"), `${gateway.user} (${gateway.role})`);
  $("ready").hidden = false;
  $("ready").className = gateway.unready ? "pill warn" : "pill good";
  say($("ready"), gateway.unready || "ready");
  $("drain").hidden = !gateway.admin;
  say($("drain"), capacity.draining ? "Take new sessions" : "Drain");
}

function gauges(capacity) {
  const items = [
    ["Ports, WAN side", capacity.ports.PROD, String],
    ["Ports, LAN side", capacity.ports.CONS, String],
    ["Sessions", capacity.sessions, String],
    ["Connections", capacity.connections, String],
    ["Rate reserved", capacity.rate, rate],
  ].filter(([, each]) => each);
  const part = (each) => (each.most ? Math.min(1, each.used / each.most) : 0);
  keep($("gauges"), items, ([name]) => name,
    ([name]) => el("div", {}, el("dt", {}, name), el("dd", {}),
      svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "meter", "aria-label": name, "aria-valuemin": 0,
        "aria-valuemax": 100 }, svg("rect", { height: 6, width: 0 }))),
    (node, [, each, unit]) => {
      const [, words, bar] = node.children;
      say(words, each.most ? `${unit(each.used)} of ${unit(each.most)}` : `${unit(each.used)}, no limit`);
      bar.setAttribute("aria-valuenow", Math.round(part(each) * 100));
      bar.setAttribute("aria-valuetext", words.textContent);
      bar.firstChild.setAttribute("width", part(each) * 100);
      bar.firstChild.setAttribute("class", part(each) > 0.9 ? "bad" : "");
    });
}

function proxies({ gateway, sessions }) {
  keep($("backends"), gateway.backends, (each) => each.name, () => el("li"), (node, each) => {
    say(node, each.available ? `${each.name} ${each.version}` : `${each.name}: ${each.reason}`);
    node.className = each.available ? "" : "warn";
  });
  const columns = ["Session", "Backend", "State", "Restarts", "Last death"];
  keep($("proxies"), sessions.filter((each) => each.proxy), (each) => each.key,
    (each) => el("tr", { "data-proxy": each.uid }, ...columns.map((what) => el("td", { "data-what": what }))),
    (node, each) => {
      const texts = [each.uid, `${each.backend} ${each.backend_version}`, each.proxy, String(each.restarts), each.last_death || "–"];
      texts.forEach((text, i) => say(node.children[i], text));
      node.children[2].className = tone(each.proxy);
    });
}

function events(list) {
  const before = heard;
  keep($("events"), [...list].reverse(), (each) => String(each.number), (each) =>
    el("li", { value: each.number }, `${clock(each.at * 1000)} `, el("b", {}, each.uid), ` of ${each.owner}: `,
      el("span", { class: tone(each.state) }, each.state), each.reason ? ` – ${each.reason}` : ""), () => {});
  heard = Math.max(heard, ...list.map((each) => each.number));
  const news = list.filter((each) => each.number > before);
  if (before && news.length) // one sentence for all that has come at once, so that who listens is not talked over
    say($("said"), news.length > 2 ? `${news.length} sessions changed` : news.map((e) => `${e.uid} is ${e.state}`).join("; "));
}

/** Ask before an act; true when it is to be done. Cancel is what Escape and Enter do. */
function sure(what, more, yes, reason) {
  say($("ask-what"), what);
  say($("ask-more"), more);
  say($("ask-yes"), yes);
  $("ask-reason").hidden = !reason;
  $("reason").value = "";
  $("ask").returnValue = "no";
  $("ask").showModal();
  settle?.(false);
  return new Promise((done) => { settle = done; });
}

// A browser tells of a closing a frame later, by when the next question may stand there: it is not that one's answer.
$("ask").addEventListener("close", () => $("ask").open || settle?.($("ask").returnValue === "yes"));

async function act(doIt) {
  try {
    say($("said"), await doIt());
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

async function kill(session) {
  const more = `It is ${session.owner}'s. Its streams are cut at once, on both gateways.`;
  if (!(await sure(`End session ${session.uid}?`, more, "Kill", true))) return;
  const path = `/api/sessions/${encodeURIComponent(session.uid)}/kill`;
  await act(async () => `${session.uid}: ${(await post(path, { owner: session.owner, reason: $("reason").value })).reason}`);
}

$("drain").addEventListener("click", async () => {
  const on = !last.capacity.draining;
  if (on && !(await sure("Drain this gateway?", "No new sessions are taken; those there are go on.", "Drain", false))) return;
  await act(async () => (await post("/api/drain", { on }), on ? "draining" : "new sessions are taken again"));
});

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value;
  $("token").value = "";
  await act(async () => {
    const { user } = await post("/api/login", { token });
    heard = 0;
    logged(true);
    $("h-sessions").focus();
    listen();
    return `logged in as ${user}`;
  });
});

$("logout").addEventListener("click", async () => {
  hush();
  await act(async () => (await post("/api/logout", {}), "logged out"));
  logged(false);
});

for (const id of ["search", "state"]) $(id).addEventListener("input", table);
document.addEventListener("visibilitychange", () => (document.hidden ? hush() : $("in").hidden || listen()));

const there = await fetch("/api/overview").catch(() => null);
if (there?.ok) {
  take(await there.json());
  listen();
} else logged(false);
