// The streams as this gateway knows them: applications in its LAN, itself, other gateways, their applications.
import { ENDED, number, rate, svg } from "./words.js";

const MOST = 24; // sessions; those that move most
const COLUMNS = [10, 260, 520, 770];
const BOX = 220;
const ROW = 46;
const TOP = 34;
const HEADS = ["Applications in the LAN", "This gateway", "Other gateways", "Their applications"];

const host = (address) => address.replace(/:\d+$/, "");
const first = (...lists) => lists.find((list) => list?.length)?.[0] ?? "";

/** Say what a session leads from and to: texts for the four columns; empty is what this gateway does not know. */
function ways(session) {
  const producer = session.role === "PROD";
  return {
    near: producer ? first(session.targets, session.prod_listeners) || "the producer" : "the consumer",
    peer: producer ? session.consumer || "the consumer's gateway" : host(first(session.targets)) || session.producer || "the producer's gateway",
    far: producer ? "the consumer" : "the producer",
  };
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function paint(into, frame) {
  const running = frame.sessions.filter((session) => !ENDED.has(session.state));
  const moved = (session) => number(session.traffic?.bytes_per_s);
  const shown = [...running].sort((a, b) => moved(b) - moved(a) || (a.uid < b.uid ? -1 : 1)).slice(0, MOST);
  shown.sort((a, b) => (a.created_at < b.created_at ? -1 : 1));
  const height = TOP + Math.max(1, shown.length) * ROW + 8;
  const root = svg("svg", { viewBox: `0 0 1000 ${height}`, role: "img" });
  const words = shown.map((s) => `${s.uid}: ${s.state}, ${rate(moved(s))}`).join("; ");
  root.setAttribute("aria-label", running.length ? `${running.length} sessions. ${words}` : "no sessions now");
  COLUMNS.forEach((x, i) => root.append(svg("text", { x, y: 18, class: "head" }, HEADS[i])));
  const gateway = frame.gateway;
  root.append(
    svg("rect", { x: COLUMNS[1], y: TOP, width: BOX, height: height - TOP - 4, rx: 8, class: "box us" }),
    svg("text", { x: COLUMNS[1] + BOX / 2, y: TOP + 20, "text-anchor": "middle", class: "head" }, gateway.name),
  );
  shown.forEach((session, i) => {
    const y = TOP + i * ROW;
    const { near, peer, far } = ways(session);
    for (const [column, text] of [[0, near], [2, peer], [3, far]])
      root.append(
        svg("rect", { x: COLUMNS[column], y: y + 4, width: BOX, height: ROW - 10, rx: 6, class: "box" }),
        svg("text", { x: COLUMNS[column] + 10, y: y + 27 }, cut(text, 31)),
      );
    const back = session.role === "CONS" ? "back" : "";
    const flow = `${session.state} ${moved(session) ? "moving" : ""} ${back}`;
    const wide = 1.5 + Math.min(6, Math.log10(1 + moved(session) / 1e5));
    for (const column of [0, 1, 2])
      root.append(svg("path", {
        class: flow, "stroke-width": wide.toFixed(1),
        d: `M${COLUMNS[column] + BOX} ${y + 22}H${COLUMNS[column + 1]}`,
      }));
    root.append(
      svg("text", { x: COLUMNS[1] + 10, y: y + 42 }, cut(session.uid, 18)),
      svg("text", { x: COLUMNS[1] + BOX - 10, y: y + 42, "text-anchor": "end", class: "soft" }, rate(moved(session))),
    );
  });
  into.replaceChildren(root);
  if (running.length > shown.length)
    into.append(Object.assign(document.createElement("p"), { textContent: `and ${running.length - shown.length} more` }));
}
