// Each session's rate over the last minutes, from when this page was opened.
import { number, rate, svg } from "./words.js";

const MINUTES = 5;
const WIDTH = 300;
const HEIGHT = 60;
const seen = new Map(); // by session: [[seconds, bytes per second]]

/** Take in what a frame says, and forget the sessions that are not in it. */
export function remember(at, sessions) {
  const there = new Set(sessions.map((session) => session.key));
  for (const key of seen.keys()) if (!there.has(key)) seen.delete(key);
  for (const session of sessions) {
    const points = seen.get(session.key) ?? [];
    points.push([at, number(session.traffic?.bytes_per_s)]);
    while (points[0][0] < at - MINUTES * 60) points.shift();
    seen.set(session.key, points);
  }
}

export const plot = () =>
  svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    svg("path", { class: "area" }), svg("path", { class: "line" }));

export function draw(node, session) {
  const points = seen.get(session.key) ?? [];
  const most = Math.max(1, ...points.map(([, value]) => value));
  const end = points.at(-1)?.[0] ?? 0;
  const wide = Math.min(MINUTES * 60, Math.max(30, end - (points[0]?.[0] ?? 0))); // seconds, from edge to edge
  const x = (at) => (WIDTH - ((end - at) / wide) * WIDTH).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (value / most) * (HEIGHT - 4)).toFixed(1);
  const line = points.map(([at, value]) => `${x(at)} ${y(value)}`).join("L");
  node.lastChild.setAttribute("d", points.length > 1 ? `M${line}` : "");
  node.firstChild.setAttribute("d", points.length > 1 ? `M${x(points[0][0])} ${HEIGHT}L${line}L${WIDTH} ${HEIGHT}Z` : "");
  node.setAttribute("aria-label", `rate over the last ${wide.toFixed()} seconds, at most ${rate(most > 1 ? most : 0)}`);
}
