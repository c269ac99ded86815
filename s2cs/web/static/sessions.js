// The table of sessions, with search, details and the button that ends one.
import { draw, plot } from "./plot.js";
import { ENDED, bytes, clock, el, keep, micros, number, rate, say, span, tone } from "./words.js";

const COLUMNS = ["Session", "Owner", "State", "Rate", "Last minutes", "Moved", "Streams", "WAN", "Ends"];
const MOST = 200; // rows
const open = new Set(); // keys of sessions whose details are shown
const $ = (id) => document.getElementById(id);

function matches(session, words, state) {
  if (state === "running" ? ENDED.has(session.state) : state && session.state !== state) return false;
  const text = [session.uid, session.role, session.owner, session.state, session.backend, session.producer,
    session.consumer, session.reason, ...session.listeners, ...session.prod_listeners, ...session.targets,
    ...Object.entries(session.labels).flat()].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** Show a frame's sessions; `kill` is called with one that is to be ended, and is null for who may not. */
export function show(frame, kill, again) {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = frame.sessions.filter((session) => matches(session, words, $("state").value)).reverse();
  say($("count"), `${found.length} of ${frame.sessions.length}`);
  $("none").hidden = found.length > 0;
  const items = found.slice(0, MOST).flatMap((s) => (open.has(s.key) ? [[s, false], [s, true]] : [[s, false]]));
  keep($("rows"), items, ([s, more]) => s.key + (more ? "+" : ""),
    ([s, more]) => (more ? detail(s) : row(s, again)),
    (node, [s, more]) => (more ? refreshDetail(node, s, kill) : refresh(node, s, frame.at)));
  states(frame);
}

function states(frame) {
  const there = [...$("state").options].map((option) => option.value);
  for (const { state } of frame.sessions)
    if (!there.includes(state)) {
      there.push(state);
      $("state").append(el("option", { value: state }, state));
    }
}

function row(session, again) {
  const button = el("button", { type: "button", class: "uid", "aria-expanded": "false" }, session.uid);
  button.addEventListener("click", () => {
    if (!open.delete(session.key)) open.add(session.key);
    again();
  });
  const cells = COLUMNS.map((what) => el("td", { "data-what": what }));
  cells[0].append(button, el("small"));
  cells[4].append(plot());
  return el("tr", { "data-uid": session.uid }, ...cells);
}

function refresh(node, session, at) {
  const cells = node.children;
  const traffic = session.traffic;
  cells[0].firstChild.setAttribute("aria-expanded", String(open.has(session.key)));
  say(cells[0].lastChild, session.role === "PROD" ? " producer" : " consumer");
  say(cells[1], session.owner);
  say(cells[2], session.state);
  cells[2].className = tone(session.state);
  say(cells[3], traffic ? rate(number(traffic.bytes_per_s)) : "–");
  draw(cells[4].firstChild, session);
  say(cells[5], traffic ? bytes(number(traffic.bytes_from_producer) + number(traffic.bytes_from_consumer)) : "–");
  say(cells[6], traffic ? `${traffic.connections_open} of ${session.num_conn}` : `– of ${session.num_conn}`);
  say(cells[7], traffic?.wan_rtt_us ? `${micros(traffic.wan_rtt_us)}, ${traffic.wan_retransmitted} again` : "–");
  say(cells[8], ENDED.has(session.state) ? "ended" : `in ${span(Date.parse(session.expires_at) / 1000 - at)}`);
}

function detail(session) {
  const cell = el("td", { colspan: COLUMNS.length }, el("dl", { class: "more" }));
  return el("tr", { "data-more": session.uid }, cell);
}

function facts(session) {
  const traffic = session.traffic ?? {};
  return [
    ["Reason", session.reason],
    ["Producer", session.producer], ["Consumer", session.consumer],
    ["Listens on", session.listeners.join(", ")], ["Leads to", session.targets.join(", ")],
    ["Producer listens on", session.prod_listeners.join(", ")],
    ["Labels", Object.entries(session.labels).map(([key, value]) => `${key} = ${value}`).join(", ")],
    ["TLS", session.protocol === "udp" ? "none: udp, unencrypted" : [session.tls_version, session.tls_cipher, session.by_key && "by key"].filter(Boolean).join(" ")],
    ["Backend", `${session.backend} ${session.backend_version}`],
    ["From the producer", bytes(number(traffic.bytes_from_producer))],
    ["From the consumer", bytes(number(traffic.bytes_from_consumer))],
    ["Peak rate", traffic.peak_bytes_per_s === undefined ? "" : rate(number(traffic.peak_bytes_per_s))],
    ["Rate limit", number(session.rate_bytes_per_s) ? rate(number(session.rate_bytes_per_s)) : "none"],
    ["Streams so far", traffic.connections_total ?? ""],
    ["LAN round trip", micros(traffic.lan_rtt_us)],
    ["Congestion windows", traffic.wan_congestion_window === undefined ? ""
      : `WAN ${bytes(number(traffic.wan_congestion_window))}, LAN ${bytes(number(traffic.lan_congestion_window))}`],
    ["Created", clock(session.created_at)], ["Lease ends", clock(session.expires_at)],
  ].filter(([, value]) => value !== "");
}

function refreshDetail(node, session, kill) {
  const [list, button] = node.firstChild.children;
  keep(list, facts(session).flatMap(([key, value]) => [["dt", key, key], ["dd", key, String(value)]]),
    ([kind, key]) => kind + key, ([kind]) => el(kind), (each, [, , text]) => say(each, text));
  if (kill && !ENDED.has(session.state) && !button) {
    const made = el("button", { type: "button", class: "kill" }, `Kill ${session.uid}`);
    made.addEventListener("click", () => kill(session));
    node.firstChild.append(made);
  } else if (button && (!kill || ENDED.has(session.state))) button.remove();
}
