"use strict";
// Builds the page from the JSON block. Data only ever becomes text nodes and numbers, never markup.
(() => {
  const D = JSON.parse(document.getElementById("trace").textContent);
  const KINDS = { cached: "cached", computed: "computed", sampled: "sampled", forced: "forced", chosen: "chosen", end: "end" };
  const MEANING = {
    cached: "prompt tokens that were there already", computed: "prompt tokens run through the model",
    sampled: "tokens drawn from the model", forced: "tokens that the grammar left no choice about",
    chosen: "the choice of a select", wait: "waiting for what comes before it",
  };
  const MANY = 40, SHOWN_PROMPT = 3000, SHOWN_LOGPROBS = 400;
  const byId = new Map(D.nodes.map((n) => [n.id, n]));
  const filled = D.nodes.filter((n) => n.kind === "gen" || n.kind === "select");
  const label = new Map(D.branches.map((b) => [b.id, b.label]));
  const narrow = matchMedia("(max-width: 1060px)");

  function h(tag, props, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(props || {})) {
      if (value == null || value === false) continue;
      if (key === "class") made.className = value;
      else if (key === "on") for (const [what, run] of Object.entries(value)) made.addEventListener(what, run);
      else if (key === "css") for (const [name, v] of Object.entries(value)) made.style.setProperty(name, v);
      else made.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) if (child != null && child !== false) made.append(child);
    return made;
  }
  const count = (n) => Math.round(n).toLocaleString("en");
  const tokens = (n) => `${count(n)} token${n === 1 ? "" : "s"}`;
  const share = (x) => `${Math.round(100 * x)} %`;
  const seconds = (s) => s < 0.0995 ? `${(s * 1000).toFixed(s < 0.00995 ? 1 : 0)} ms` : s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(2)} s`;
  const path = (id) => (label.get(id) || "").replaceAll("fork ", "").split(", ").join(" › ") || "root";
  const lastLabel = (id) => (label.get(id) || "").split(", ").pop() || "root";

  // --- tokens

  function visible(text) { // line breaks keep a mark, so that one can see which token holds them
    const parts = [];
    text.split(/(\n+)/).forEach((piece) => {
      if (piece.startsWith("\n")) { for (const nl of piece) parts.push(h("span", { class: "nl", "aria-hidden": "true" }, "↵"), nl); }
      else if (piece) parts.push(piece);
    });
    return parts;
  }
  const span = (text, kind, title) => h("span", { class: `t t-${KINDS[kind] || "plain"}`, title }, visible(text));

  function outputSpans(node, short) { // `short`: without the token that ended it
    return (node.tokens || []).filter((t) => !short || t[1] !== "end").map(([text, kind, logprob]) =>
      span(text, kind, logprob == null ? kind : `${kind}, p = ${Math.exp(logprob).toFixed(3)}, log p = ${logprob.toFixed(3)}`));
  }

  function promptPieces(node) { // every token of its prompt, or null where the endpoint did not tell them
    const chain = [];
    for (let at = node; at; at = at.prompt.after ? byId.get(at.prompt.after) : null) {
      if (!at.prompt || !at.prompt.pieces) return null;
      chain.push(at);
    }
    let pieces = [];
    for (const at of chain.reverse()) {
      pieces = pieces.slice(0, at.prompt.start).concat(at.prompt.pieces);
      if (at !== node) pieces = pieces.concat(at.prompt.output || (at.tokens || []).map((t) => t[0]));
    }
    for (let extra = node.prompt.extra || 0; extra > 0 && pieces.length;) { // what belongs to the choice already
      const last = pieces.pop(), cut = Math.min(extra, last.length);
      extra -= cut;
      if (cut < last.length) pieces.push(last.slice(0, last.length - cut));
    }
    return pieces;
  }

  function promptText(node) {
    const parts = [];
    let branch = D.branches.find((b) => b.id === node.branch);
    let limit = node.id;
    let upTo = Infinity;
    while (branch) {
      const own = D.nodes.filter((n) => n.branch === branch.id).slice(0, upTo);
      const stop = own.findIndex((n) => n.id === limit);
      parts.unshift((stop < 0 ? own : own.slice(0, stop)).map((n) => n.text || "").join(""));
      upTo = branch.at; limit = null;
      branch = D.branches.find((b) => b.id === branch.parent);
    }
    return parts.join("");
  }

  // --- summary

  function summary() {
    const t = D.totals, plan = D.plan;
    const tile = (name, value, more) => h("div", { class: "tile" }, h("dt", {}, name), h("dd", { class: "num" }, value, more && h("small", {}, more)));
    const forced = t.forced_tokens, sampled = Math.max(t.completion_tokens - forced, 0);
    const parts = [["cached", t.cached_tokens], ["computed", plan.computed_prompt], ["sampled", sampled], ["forced", forced]];
    const all = parts.reduce((sum, [, n]) => sum + n, 0);
    const tiles = [
      tile("Gens and selects", count(t.nodes), [["merged", t.merged], ["dropped", t.dropped], ["failed", t.failed]].filter(([, n]) => n).map(([w, n]) => `${n} ${w}`).join(", ")),
      tile("Prompt tokens", count(t.prompt_tokens), t.prompt_tokens ? `${share(t.cached_tokens / t.prompt_tokens)} cached` : ""),
      tile("Generated", count(t.completion_tokens), forced ? `${share(forced / t.completion_tokens)} forced` : ""),
      tile("Time", seconds(D.wall)),
    ];
    if (t.retries) tiles.push(tile("Retries", count(t.retries)));
    if (t.cost != null) tiles.push(tile("Cost", t.cost.toPrecision(3)));
    const saying = plan.ran && plan.prompt_tokens ? `Each on its own, the prompts would be ${tokens(plan.prompt_tokens)}. ${plan.exact ? "" : "About "}${count(plan.distinct_tokens)} of them are distinct prefixes, the least that must be computed; ${count(plan.computed_prompt)} were${plan.computed_prompt < plan.distinct_tokens ? ", since earlier programs had left some in the cache" : ""}.` : "";
    return h("section", { class: "card summary", "aria-label": "Summary" },
      h("dl", { class: "tiles" }, tiles),
      all ? h("div", { class: "mix", role: "img", "aria-label": parts.map(([k, n]) => `${n} ${k}`).join(", ") },
        parts.filter(([, n]) => n).map(([k, n]) => h("i", { class: `b-${k}`, css: { flex: `${n} 0 0` }, title: `${k}: ${count(n)}` }))) : null,
      h("ul", { class: "legend num" }, parts.map(([k, n]) => h("li", { title: MEANING[k] }, h("i", { class: `b-${k}` }), k, h("b", {}, count(n))))),
      saying && h("p", { class: "saying" }, saying),
      D.notes.length ? h("ul", { class: "notes" }, D.notes.map((n) => h("li", {}, n))) : null);
  }

  // --- tree

  const rows = new Map(), lanes = new Map();
  let picked = null;

  function role(n) { // a chip of the colour that most of its marker has
    const most = (n.parts || []).reduce((best, part) => part[0].length > best[0].length ? part : best, ["", "plain"]);
    return h("span", { class: `t role t-${most[1]}`, title: n.text }, n.role);
  }

  function literal(nodes) {
    const inside = [];
    let again = 0, whole = "";
    for (const n of nodes) {
      again = Math.max(again, n.reused || 0);
      if (n.kind === "role_begin") { inside.push(role(n)); continue; }
      if (n.kind === "role_end") { inside.push(" "); continue; }
      whole += n.text || "";
      if (n.parts && n.parts.length) inside.push(n.parts.map(([text, k]) => span(text, k, k)));
      else inside.push(span(n.text || "", "plain"));
      if (n.error) inside.push(h("span", { class: "failed" }, ` ${n.error}`));
    }
    if (!whole && !nodes.some((n) => n.kind === "role_begin" || n.error)) return null;
    if (again) inside.push(h("span", { class: "again" }, `used ${count(again + 1)} times`));
    return h("li", { role: "none" }, h("div", { class: "row lit", title: nodes[0].where }, h("div", { class: "what" }, inside)));
  }

  function clip(list) { // rows that are too tall end in a fade, and literal ones can be opened
    requestAnimationFrame(() => {
      for (const what of list.querySelectorAll(".what:not(.seen)")) {
        if (!what.clientHeight) continue;
        what.classList.add("seen");
        if (what.scrollHeight <= what.clientHeight + 4) continue;
        what.classList.add("cut");
        if (what.parentElement.matches(".lit")) {
          const more = h("button", { type: "button", class: "more", on: { click: () => { what.classList.remove("cut"); what.classList.add("whole"); more.remove(); } } }, "Show all of it");
          what.after(more);
        }
      }
    });
  }

  function figures(n) {
    const u = n.usage;
    if (n.status === "merged") return [`as ${u.of}`];
    if (n.status === "dropped" || n.status === "running") return [n.status];
    if (!u.prompt_tokens && !u.completion_tokens) return n.status === "failed" ? ["failed"] : [];
    const took = n.times.done != null ? n.times.done - (n.times.begun ?? n.times.sent ?? 0) : null;
    return [`${count(u.prompt_tokens)} in, ${count(u.cached_tokens)} cached · `, h("b", {}, `${count(u.completion_tokens)} out`), took != null ? ` · ${seconds(took)}` : ""];
  }

  function leaf(n, opened) { // `opened`: the role whose message the generation is
    const failed = n.status === "failed" || n.status === "dropped";
    const row = h("button", {
      type: "button", role: "treeitem", tabindex: "-1", "aria-selected": "false", class: `row${n.status === "failed" ? " failed" : ""}`,
      on: { click: () => pick(n.id, true) }, "data-id": n.id,
    },
    h("div", { class: "what" }, opened && role(opened), h("span", { class: "tag" }, n.kind), n.name && h("span", { class: "nm" }, n.name),
      failed ? h("span", {}, n.error) : outputSpans(n, true)),
    h("div", { class: "fig num" }, figures(n)));
    rows.set(n.id, row);
    return h("li", { role: "none" }, row);
  }

  function limb(branch, depth) {
    const own = D.nodes.filter((n) => n.branch === branch.id);
    const forks = new Map();
    for (const b of D.branches) if (b.parent === branch.id) (forks.get(b.at) || forks.set(b.at, []).get(b.at)).push(b);
    const items = [];
    let said = [];
    const flush = () => { if (said.length) { const made = literal(said); if (made) items.push(made); said = []; } };
    for (let i = 0; i <= own.length; i++) {
      if (forks.has(i)) { flush(); for (const b of forks.get(i)) items.push(child(b, depth + 1)); }
      if (i === own.length) break;
      if (own[i].kind === "gen" || own[i].kind === "select") {
        const opened = said.length && said[said.length - 1].kind === "role_begin" ? said.pop() : null;
        flush();
        items.push(leaf(own[i], opened));
      } else said.push(own[i]);
    }
    flush();
    for (const [at, later] of forks) if (at > own.length) for (const b of later) items.push(child(b, depth + 1));
    return items;
  }

  function child(branch, depth) {
    const open = depth < 60 && D.branches.length <= MANY;
    const inside = h("ul", { role: "group" });
    const twist = h("span", { class: "twist", "aria-hidden": "true" }, open ? "▾" : "▸");
    const own = filled.filter((n) => n.branch === branch.id);
    const head = h("button", { type: "button", class: "fork", role: "treeitem", tabindex: "-1", "aria-expanded": String(open), on: { click: () => toggle() } },
      twist, lastLabel(branch.id), h("span", { class: "hint" }, own.map((n) => n.name || n.kind).slice(0, 6).join(", ")));
    let built = false;
    function toggle(want) {
      const show = want ?? head.getAttribute("aria-expanded") !== "true";
      if (show && !built) { inside.append(...limb(branch, depth)); built = true; }
      if (show) clip(inside);
      head.setAttribute("aria-expanded", String(show)); inside.hidden = !show; twist.textContent = show ? "▾" : "▸";
    }
    head.toggle = toggle;
    toggle(open);
    openers.set(branch.id, () => toggle(true));
    return h("li", { role: "none" }, head, inside);
  }
  const openers = new Map();

  function tree() {
    const root = D.branches[0];
    const list = h("ul", { class: "tree", role: "tree", "aria-label": "Program" }, root ? limb(root, 0) : []);
    const items = () => [...list.querySelectorAll("[role=treeitem]")].filter((e) => !e.closest("ul[hidden]"));
    list.addEventListener("keydown", (event) => {
      const all = items(), at = all.indexOf(document.activeElement);
      if (at < 0) return;
      const here = all[at];
      const go = (e) => { if (e) { focusOn(e, all); event.preventDefault(); } };
      if (event.key === "ArrowDown") go(all[at + 1]);
      else if (event.key === "ArrowUp") go(all[at - 1]);
      else if (event.key === "Home") go(all[0]);
      else if (event.key === "End") go(all[all.length - 1]);
      else if (event.key === "ArrowRight") { if (here.getAttribute("aria-expanded") === "false") { here.toggle(true); event.preventDefault(); } else go(all[at + 1]); }
      else if (event.key === "ArrowLeft") {
        if (here.getAttribute("aria-expanded") === "true") { here.toggle(false); event.preventDefault(); }
        else go(here.closest("ul[role=group]")?.parentElement.querySelector(".fork"));
      }
    });
    const first = items()[0];
    if (first) first.tabIndex = 0;
    return h("section", { class: "card", "aria-label": "Program" },
      h("div", { class: "head" }, h("h2", {}, "Program"), h("span", { class: "hint" }, "Select a generation to see its prompt")), list);
  }
  function focusOn(element, all) { for (const e of all) e.tabIndex = -1; element.tabIndex = 0; element.focus(); }

  // --- timeline

  function timeline() {
    const timed = filled.filter((n) => n.times && n.times.done != null)
      .sort((a, b) => (a.times.begun ?? a.times.sent ?? 0) - (b.times.begun ?? b.times.sent ?? 0) || a.times.done - b.times.done);
    if (!timed.length || !D.wall) return null;
    const end = Math.max(D.wall, ...timed.map((n) => n.times.done));
    const bar = (kind, from, to, what) => to > from ? h("i", { class: `b-${kind}`, title: `${what} ${seconds(to - from)}`, css: { left: `${100 * from / end}%`, width: `${100 * (to - from) / end}%` } }) : null;
    const list = h("div", { class: "time", role: "listbox", "aria-label": "Timeline" },
      h("div", { class: "ticks num", "aria-hidden": "true" }, [0, .25, .5, .75, 1].map((x) => h("span", { css: { left: `${100 * x}%` } }, x ? seconds(end * x) : "0"))));
    timed.forEach((n, i) => {
      const t = n.times, sent = t.sent ?? t.begun ?? 0, begun = t.begun ?? sent, first = t.first ?? begun;
      const made = n.kind === "select" ? "chosen" : "sampled";
      const lane = h("button", {
        type: "button", class: "lane", role: "option", tabindex: i ? "-1" : "0", "aria-selected": "false", on: { click: () => pick(n.id, true) },
        "aria-label": `${n.kind} ${n.name || ""}, ${label.get(n.branch) || "root"}, from ${seconds(begun)} to ${seconds(t.done)}`,
      },
      h("span", { class: "lb" }, n.name || n.kind, h("span", {}, path(n.branch))),
      h("span", { class: "bars" }, bar("wait", sent, begun, "waiting"),
        n.kind === "select" ? bar("chosen", begun, t.done, "scoring") : [bar("computed", begun, first, "until the first token"), bar(made, first, t.done, "generating")]));
      lanes.set(n.id, lane);
      list.append(lane);
    });
    list.addEventListener("keydown", (event) => {
      const all = [...lanes.values()], at = all.indexOf(document.activeElement);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (at >= 0 && to != null && all[to]) { focusOn(all[to], all); event.preventDefault(); }
    });
    const key = (kind, text) => h("li", { title: MEANING[kind] }, h("i", { class: `b-${kind}` }), text);
    return h("section", { class: "card", "aria-label": "Timeline" },
      h("div", { class: "head" }, h("h2", {}, "Timeline"), h("ul", { class: "legend", css: { margin: "0" } }, key("wait", "waiting"), key("computed", "until the first token"), key("sampled", "generating"), filled.some((n) => n.kind === "select") && key("chosen", "scoring choices"))),
      list);
  }

  // --- detail

  const panel = h("aside", { class: "card detail empty", "aria-label": "Selected node", tabindex: "-1" });
  let cameFrom = null;

  function pairs(list) {
    return h("dl", { class: "pair num" }, list.filter(([, v]) => v != null && v !== "").map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
  }

  function usagePairs(n) {
    const u = n.usage, t = n.times || {};
    if (n.status === "merged") return pairs([["Same as", u.of]]);
    return pairs([
      ["Prompt", u.prompt_tokens ? `${tokens(u.prompt_tokens)}, ${count(u.cached_tokens)} cached` : null],
      ["Generated", u.completion_tokens ? `${tokens(u.completion_tokens)}${u.forced_tokens ? `, ${count(u.forced_tokens)} forced` : ""}` : null],
      ["Time to first token", t.first != null && t.begun != null ? seconds(t.first - t.begun) : u.ttft != null ? seconds(u.ttft) : null],
      ["Latency, from sending", u.latency != null ? seconds(u.latency) : null],
      ["Queue", u.queue ? seconds(u.queue) : null],
      ["Retries", u.retries || null], ["Retractions", u.retractions || null],
      ["Model", u.model], ["Cost", u.cost != null ? u.cost.toPrecision(3) : null],
      ["Ended by", n.finish ? (n.finish.matched != null ? `${n.finish.type}: ${typeof n.finish.matched === "string" ? JSON.stringify(n.finish.matched) : `token ${n.finish.matched}`}` : n.finish.length != null ? `${n.finish.type} ${n.finish.length}` : n.finish.type) : null],
    ]);
  }

  function promptBox(n) {
    const pieces = promptPieces(n);
    const box = h("div", { class: "box each", tabindex: "0", role: "region", "aria-label": "Prompt" });
    if (!pieces) {
      const text = promptText(n);
      const cut = Math.max(text.length - 20000, 0);
      if (cut) box.append(h("span", { class: "hint" }, `… ${count(cut)} characters before `));
      box.append(span(text.slice(cut), "plain"));
      return box;
    }
    const from = Math.max(pieces.length - SHOWN_PROMPT, 0), cached = n.status === "merged" ? pieces.length : n.prompt.cached;
    if (from) box.append(h("span", { class: "hint" }, `… ${tokens(from)} before `));
    for (let i = from; i < pieces.length; i++) if (pieces[i]) box.append(span(pieces[i], i < cached ? "cached" : "computed"));
    return box;
  }

  const meter = (p, kind) => h("span", { class: "meter", "aria-hidden": "true" }, h("i", { class: `b-${kind}`, css: { width: `${100 * p}%` } }));

  function logprobs(n) {
    const told = (n.tokens || []).filter((t) => t[2] != null);
    if (!told.length) return null;
    const line = ([text, kind, logprob, others]) => h("tr", {},
      h("td", { class: "tok" }, span(text || "∅", kind)),
      h("td", { class: "p num" }, meter(Math.exp(logprob), kind), Math.exp(logprob).toFixed(3)),
      h("td", {}, (others || []).filter((o) => o[0] !== text).slice(0, 3).map(([other, lp]) => h("span", { class: "alt num" }, h("code", {}, JSON.stringify(other).slice(1, -1)), ` ${lp == null ? "0" : Math.exp(lp).toFixed(3)}`))));
    return [h("h3", {}, "Probabilities"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Probabilities" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "Token"), h("th", {}, "p"), h("th", {}, "Instead"))),
      h("tbody", {}, told.slice(0, SHOWN_LOGPROBS).map(line)))),
    told.length > SHOWN_LOGPROBS ? h("p", { class: "hint" }, `and ${count(told.length - SHOWN_LOGPROBS)} more`) : null];
  }

  function choices(n) {
    if (!n.choices) return null;
    const scores = n.choices.map((c) => c.score).filter((s) => s != null);
    const top = Math.max(...scores), weights = n.choices.map((c) => c.score == null ? 0 : Math.exp(c.score - top));
    return [h("h3", {}, "Choices"), h("table", {}, h("tbody", {}, n.choices.map((c, i) => h("tr", {},
      h("td", { class: "tok" }, c.chosen ? span(c.text, "chosen") : c.text),
      h("td", { class: "p num" }, meter(weights[i], "chosen"), c.score == null ? "" : c.score.toFixed(3))))))];
  }

  const shown = (value) => typeof value === "string" ? value : JSON.stringify(value, null, 2);

  function pick(id, byHand) {
    const n = byId.get(id);
    if (picked) for (const map of [rows, lanes]) map.get(picked)?.setAttribute("aria-selected", "false");
    picked = id;
    for (let b = D.branches.find((x) => x.id === n.branch); b && b.parent; b = D.branches.find((x) => x.id === b.parent)) chain.push(b.id);
    while (chain.length) openers.get(chain.pop())?.();
    for (const map of [rows, lanes]) map.get(id)?.setAttribute("aria-selected", "true");
    if (byHand) {
      cameFrom = document.activeElement;
      const lane = lanes.get(id), box = lane?.parentElement; // the page stays where it is; the timeline's own box may move
      if (lane && lane !== cameFrom) box.scrollTop = Math.min(Math.max(box.scrollTop, lane.offsetTop + lane.offsetHeight - box.clientHeight), lane.offsetTop - 24);
    }
    const asked = Object.keys(n.params || {}).length ? n.params : null;
    const body = [
      h("div", { class: "head", css: { "flex-wrap": "nowrap" } },
        h("h2", {}, h("span", { class: "tag" }, n.kind), n.name || "unnamed", n.status !== "done" && h("span", { class: `hint${n.status === "failed" ? " failed" : ""}` }, ` ${n.status}`)),
        h("button", { type: "button", class: "close", on: { click: close } }, "Close")),
      h("div", { class: "where" }, n.where, label.get(n.branch) ? h("div", {}, label.get(n.branch)) : null),
      usagePairs(n),
      n.error && [h("h3", {}, "Error"), h("pre", { class: "box err" }, n.error)],
      n.text != null && [h("h3", {}, "Output"), h("div", { class: "box each", tabindex: "0", role: "region", "aria-label": "Output" }, outputSpans(n))],
      choices(n), logprobs(n),
      h("h3", {}, "Prompt"), promptBox(n),
      n.constraint && [h("h3", {}, `Constraint: ${n.constraint.kind}`), h("pre", { class: "box", tabindex: "0" }, shown(n.constraint.value))],
      asked && [h("h3", {}, "Parameters"), pairs(Object.entries(asked).map(([k, v]) => [k, typeof v === "object" ? JSON.stringify(v) : String(v)]))],
    ];
    panel.replaceChildren(...body.flat(Infinity).filter(Boolean));
    if (byHand || !narrow.matches) panel.classList.remove("empty");
    panel.scrollTop = 0;
    const prompt = panel.querySelector('[aria-label="Prompt"]');
    prompt.scrollTop = prompt.scrollHeight;
    if (byHand && narrow.matches) panel.focus({ preventScroll: true });
  }
  const chain = [];
  function close() { panel.classList.add("empty"); cameFrom?.focus?.(); }
  addEventListener("keydown", (event) => { if (event.key === "Escape" && narrow.matches) close(); });

  const about = [D.model, `${count(D.branch_count)} branch${D.branch_count === 1 ? "" : "es"}`, D.finished ? null : "not finished when this was made"].filter(Boolean).join(" · ");
  document.getElementById("app").append(
    h("header", {}, h("h1", {}, D.title), h("p", { class: "sub" }, about)),
    summary(),
    h("div", { class: "grid" }, h("div", { class: "left" }, tree(), timeline()), panel));
  clip(document.body);
  const first = filled.find((n) => n.status === "failed") || byId.get([...rows.keys()][0]) || filled[0];
  if (first) pick(first.id, false); else panel.append(h("p", { class: "hint" }, "Nothing was generated."));
})();
