"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls");
  const panel = document.getElementById("compare");
  const introduction = panel.textContent.trim();
  const state = {};
  const MOST = 100; // rows of a table that are laid out before somebody asks for all

  const sections = [...document.querySelectorAll("section.protocol")].map((node) => {
    const table = node.querySelector("table.ranking");
    const heads = table ? [...table.tHead.rows[0].cells] : [];
    const keys = heads.map((head) => head.dataset.key);
    const rows = table ? [...table.tBodies[0].rows].map((row) => describe(row, keys)) : [];
    const points = new Map();
    for (const point of node.querySelectorAll("svg a")) {
      points.set(point.dataset.row, [...(points.get(point.dataset.row) || []), point]);
    }
    const [protocol, index, more] = [node.dataset.protocol, Number(node.dataset.table), node.querySelector("button.more")];
    const ranking = heads.find((head) => head.hasAttribute("aria-sort"))?.dataset.key;
    return { node, table, heads, keys, rows, points, protocol, index, more, ranking, order: rows, most: MOST };
  });

  function describe(row, keys) {
    const values = {};
    keys.forEach((key, column) => {
      if (!key) return;
      const cell = row.cells[column];
      const text = key === "model" ? cell.querySelector("a").textContent : cell.textContent.trim();
      const value = cell.dataset.value;
      const number = value !== undefined && key !== "rank"; // what is downloaded as a number; of ranks, the interval is
      values[key] = { text, number, value: value === undefined ? text.toLowerCase() : value === "" ? null : Number(value) };
    });
    return { row, values, index: row.dataset.row, box: row.querySelector("input"), shown: true };
  }

  // --- state, which lives in the address

  const KEYS = ["protocol", "q", "family", "data", "tier", "min", "max", "sort", "dir", "a", "b"];

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of KEYS) state[key] = given.get(key) || "";
    if (state.sort === "robust") state.sort = "headline"; // what the column was called in older addresses
    for (const field of form.elements) if (field.name) field.value = state[field.name] || "";
    for (const key of ["protocol", "family", "data", "tier"]) state[key] = form.elements[key].value || "";
  }

  function write() {
    const kept = new URLSearchParams();
    for (const key of KEYS) if (state[key]) kept.set(key, state[key]);
    history.replaceState(null, "", `#${kept}`);
  }

  // --- filters

  function filter() {
    const wanted = state.q.toLowerCase();
    const least = state.min === "" ? null : Number(state.min) * 1e6;
    const most = state.max === "" ? null : Number(state.max) * 1e6;
    let count = 0;
    for (const section of sections) {
      section.node.hidden = state.protocol !== "" && section.protocol !== state.protocol;
      for (const each of section.rows) {
        const { model, family, data: trained, tier, parameters } = each.values;
        const size = parameters.value;
        each.shown =
          model.text.toLowerCase().includes(wanted) &&
          (!state.family || family.text === state.family) &&
          (!state.data || trained.text === state.data) &&
          (!state.tier || tier.text === state.tier) &&
          (least === null || (size !== null && size >= least)) &&
          (most === null || (size !== null && size <= most));
        for (const point of section.points.get(each.index) || []) point.toggleAttribute("hidden", !each.shown);
        if (each.shown && !section.node.hidden) count += 1;
      }
    }
    form.elements.shown.value = count === 1 ? "1 row" : `${count} rows`;
  }

  // --- sorting

  function order(first, second) {
    if (first === null || second === null) return (first === null) - (second === null); // unknown last, either way
    return first < second ? -1 : first > second ? 1 : 0;
  }

  function sort() {
    for (const section of sections) {
      const key = section.keys.includes(state.sort) ? state.sort : section.ranking;
      if (!key) continue;
      const first = key === section.ranking ? "descending" : "ascending";
      const sign = ((key === state.sort && state.dir) || first) === "descending" ? -1 : 1;
      section.heads.forEach((head) => head.removeAttribute("aria-sort"));
      section.heads[section.keys.indexOf(key)].setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      const value = (each) => each.values[key].value;
      const sorted = [...section.rows].sort((a, b) => {
        const unknown = value(a) === null || value(b) === null;
        return (unknown ? 1 : sign) * order(value(a), value(b)) || a.index - b.index;
      });
      section.order = sorted;
    }
    layOut();
  }

  function layOut() {
    for (const section of sections) {
      if (!section.table) continue;
      const shown = section.order.filter((each) => each.shown);
      section.table.tBodies[0].replaceChildren(...shown.slice(0, section.most).map((each) => each.row));
      section.more.hidden = shown.length <= section.most;
      section.more.textContent = `Show all ${shown.length} rows`;
    }
  }

  // --- two rows, example by example

  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  function ones(byte) {
    let count = 0;
    for (; byte; byte &= byte - 1) count += 1;
    return count;
  }

  function mcnemar(onlyA, onlyB) {
    // Exact: twice the tail of a fair coin, its terms in logarithms.
    const total = onlyA + onlyB;
    const fewer = Math.min(onlyA, onlyB);
    let term = -total * Math.LN2;
    let tail = 0;
    for (let count = 0; count <= fewer; count += 1) {
      tail += Math.exp(term);
      term += Math.log((total - count) / (count + 1));
    }
    return Math.min(1, 2 * tail);
  }

  function wilson(successes, total) {
    const z = 1.959963984540054;
    const share = successes / total;
    const scale = 1 + (z * z) / total;
    const centre = (share + (z * z) / (2 * total)) / scale;
    const half = (z * Math.sqrt((share * (1 - share)) / total + (z * z) / (4 * total * total))) / scale;
    return [successes === 0 ? 0 : centre - half, successes === total ? 1 : centre + half];
  }

  function interval(both, onlyA, onlyB, neither) {
    // Newcombe 1998, method 10, as `robench compare`.
    const total = both + onlyA + onlyB + neither;
    const [a, b] = [both + onlyA, both + onlyB];
    const [[lowA, highA], [lowB, highB]] = [wilson(a, total), wilson(b, total)];
    const product = a * (total - a) * b * (total - b);
    let cross = both * neither - onlyA * onlyB;
    if (cross > 0) cross = Math.max(cross - total / 2, 0);
    const phi = product ? cross / Math.sqrt(product) : 0;
    const half = (x, y) => Math.sqrt(Math.max(0, x * x - 2 * phi * x * y + y * y));
    const [rateA, rateB] = [a / total, b / total];
    return [
      Math.max(-1, rateB - rateA - half(rateB - lowB, highA - rateA)),
      Math.min(1, rateB - rateA + half(highB - rateB, rateA - lowA)),
    ];
  }

  function erfc(x) {
    // Abramowitz & Stegun 7.1.26, to 1.5e-7, for x >= 0.
    const t = 1 / (1 + 0.3275911 * x);
    const sum = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((total, each) => total * t + each, 0);
    return sum * t * Math.exp(-x * x);
  }

  function compareCounts(paired, a, b) {
    // Paired over examples: the interval is that of a mean, the test that of a mean of zero.
    const [first, second] = [bytes(paired.counts[a]), bytes(paired.counts[b])];
    const differences = Array.from(second, (count, place) => (count - first[place]) / paired.asks);
    const total = differences.length;
    const sum = differences.reduce((all, each) => all + each, 0);
    const squares = differences.reduce((all, each) => all + each * each, 0);
    const half = 1.959963984540054 * Math.sqrt(Math.max(0, squares - (sum * sum) / total) / (total - 1) / total);
    const mean = sum / total;
    return { mean, total, p: squares ? erfc(Math.abs(sum) / Math.sqrt(2 * squares)) : 1, interval: [mean - half, mean + half] };
  }

  function compare(paired, a, b) {
    const [first, second] = [bytes(paired.held[a]), bytes(paired.held[b])];
    let [both, onlyA, onlyB] = [0, 0, 0];
    first.forEach((byte, place) => {
      both += ones(byte & second[place]);
      onlyA += ones(byte & ~second[place] & 255);
      onlyB += ones(~byte & second[place] & 255);
    });
    const neither = paired.total - both - onlyA - onlyB;
    return { both, onlyA, onlyB, neither, p: mcnemar(onlyA, onlyB), interval: interval(both, onlyA, onlyB, neither) };
  }

  function find(reference) {
    const cut = reference.lastIndexOf(":");
    const section = sections.find((each) => each.protocol === reference.slice(0, cut));
    const each = section && section.rows.find((row) => row.values.model.text === reference.slice(cut + 1));
    return each ? { section, each } : null;
  }

  function say(text) {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    panel.replaceChildren(paragraph);
  }

  function show() {
    const chosen = [state.a, state.b].map((reference) => (reference ? find(reference) : null));
    for (const section of sections) {
      for (const each of section.rows) {
        const mine = chosen.some((other) => other && other.each === each);
        if (each.box.checked !== mine) each.box.checked = mine;
        each.row.classList.toggle("chosen", mine);
      }
    }
    const [a, b] = chosen;
    if (!a || !b) {
      say(a || b ? `${(a || b).each.values.model.text} is chosen. Choose a second row of its table.` : introduction);
      return;
    }
    const paired = data.tables[a.section.index];
    if (a.section !== b.section) {
      say("These two cannot be paired: choose two rows of one table.");
      return;
    }
    if (!paired.held && !paired.counts) {
      say("This table has too many images for a comparison on this page.");
      return;
    }
    const names = [a, b].map((other) => other.each.values.model.text);
    const points = (value) => `${value < 0 ? "" : "+"}${(100 * value).toFixed(1)}`;
    const [one, other] = [Number(a.each.index), Number(b.each.index)];
    const found = paired.held ? compare(paired, one, other) : compareCounts(paired, one, other);
    const rate = paired.held ? (found.onlyB - found.onlyA) / paired.total : found.mean;
    const p = found.p < 1e-4 ? found.p.toExponential(1) : found.p.toFixed(4);
    const verdict = found.p < data.level ? "significantly different" : "no significant difference";
    const counts = paired.held
      ? `Of ${paired.total} images, only ${names[0]} holds ${found.onlyA}, only ${names[1]} ${found.onlyB}, ` +
        `both ${found.both}, neither ${found.neither}.`
      : `Paired over ${found.total} images.`;
    say(
      `${names[1]} minus ${names[0]} under ${a.section.protocol}: ${points(rate)} points ` +
        `[${points(found.interval[0])}, ${points(found.interval[1])}], ${paired.held ? "McNemar" : "z test"} p = ${p}: ` +
        `${verdict}. ${counts}`,
    );
  }

  function choose(reference, chosen) {
    if (!chosen) {
      if (state.a === reference) [state.a, state.b] = [state.b, ""];
      else state.b = "";
    } else if (!state.a || (state.b && find(state.a)?.section !== find(reference)?.section)) {
      [state.a, state.b] = [reference, ""];
    } else {
      state.b = reference;
    }
  }

  // --- download

  function field(text) {
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text; // no formulas in spreadsheets
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function download(section) {
    const keys = section.keys.filter((key) => key);
    const rows = section.order.filter((each) => each.shown);
    const lines = rows.map((each) => keys.map((key) => field(String((each.values[key].number ? each.values[key].value : each.values[key].text) ?? ""))));
    const text = [keys, ...lines].map((cells) => cells.join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${section.protocol}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // --- what is clicked

  for (const section of sections) {
    section.heads.forEach((head, column) => {
      const key = section.keys[column];
      if (!key) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.classList.contains("number") && key !== "rank" ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        [state.sort, state.dir] = [key, now === first ? other : first];
        write();
        sort();
      });
    });
    for (const each of section.rows) {
      each.box.addEventListener("change", () => {
        choose(`${section.protocol}:${each.values.model.text}`, each.box.checked);
        write();
        show();
      });
    }
    section.node.querySelector("button.csv")?.addEventListener("click", () => download(section));
    section.more?.addEventListener("click", () => {
      section.most = Infinity;
      layOut();
    });
  }
  form.addEventListener("input", () => {
    for (const field of form.elements) if (field.name) state[field.name] = field.value;
    write();
    filter();
    layOut();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    history.replaceState(null, "", "#");
    apply();
  });
  addEventListener("hashchange", apply);

  function apply() {
    read();
    filter();
    sort();
    show();
  }

  document.documentElement.classList.add("js");
  apply();
})();
