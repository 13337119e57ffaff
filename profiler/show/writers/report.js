"use strict";
// What a report can do in a browser with scripts: filter, sort, hover, zoom. Without them, the page shows everything.
// Names of models come from outside, so text is only ever set as textContent. ASCII only, as is all of -o html.
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, attributes, text) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };

  // ---- Sort: a click on the heading of a table; unknown figures come last in both directions.
  const BYTES = { k: 2 ** 10, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40 };
  const UNITS = { ...BYTES, us: 1e-6, ms: 1e-3, min: 60, h: 3600 };
  const figure = (text) => {
    const found = /^~?(-?[\d,]*\.?\d+)\s*([a-z]*)/i.exec(text.trim());
    return found ? Number(found[1].replaceAll(",", "")) * (UNITS[found[2].toLowerCase()] || 1) : null;
  };
  const compare = (one, other, numeric, way) => {
    if (!numeric) return way * one.localeCompare(other, "en", { numeric: true });
    const [a, b] = [figure(one), figure(other)];
    return a === null || b === null ? (a === null) - (b === null) : way * (a - b);
  };
  for (const table of all("table:not(.map)")) {
    const heads = all("thead th", table);
    heads.forEach((head, place) => {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("figure");
        const before = head.getAttribute("aria-sort");
        const way = before ? (before === "ascending" ? -1 : 1) : numeric ? -1 : 1; // the largest figure first
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
        const cell = (row) => row.cells[place].textContent;
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => compare(cell(a), cell(b), numeric, way)));
      });
    });
  }

  // ---- Filter: by model and by quantization. Rows, bars, marks and charts say which they are about.
  const off = { model: new Set(), quant: new Set() };
  const apply = () => {
    for (const each of all("[data-model], [data-quant], [data-joins]")) {
      const { model, quant, joins } = each.dataset;
      // A line that joins cases is true of all of them only.
      const torn = joins !== undefined && (off.quant.size || (model === undefined && off.model.size));
      each.toggleAttribute("hidden", off.model.has(model) || off.quant.has(quant) || Boolean(torn));
    }
  };
  const chips = (kind, title) => {
    // In the order of the map, which is that of the tables; the picture above it may show some of them only.
    const named = [...all(`.map [data-${kind}]`), ...all(`[data-${kind}]`)];
    const names = [...new Set(named.map((each) => each.dataset[kind]))];
    if (names.length < 2) return null;
    const group = make("div", { role: "group", "aria-label": title });
    group.append(make("span", {}, title));
    const buttons = names.map((name) => make("button", { type: "button", "aria-pressed": "true" }, name));
    const draw = () => buttons.forEach((button, n) => button.setAttribute("aria-pressed", !off[kind].has(names[n])));
    buttons.forEach((button, n) =>
      button.addEventListener("click", () => {
        // The first click shows one name alone, later ones add and remove; with none left, all are back.
        if (off[kind].size === 0) names.forEach((name) => name !== names[n] && off[kind].add(name));
        else if (!off[kind].delete(names[n])) off[kind].add(names[n]);
        if (off[kind].size === names.length) off[kind].clear();
        draw();
        apply();
      }),
    );
    group.append(...buttons);
    return group;
  };
  const groups = [chips("model", "Models"), chips("quant", "Quantizations")].filter(Boolean);
  if (groups.length) {
    const filter = make("div", { id: "filter" });
    filter.append(...groups);
    document.querySelector("nav").after(filter);
  }

  // ---- Hover: the nearest mark of a chart says its figures.
  const tip = make("div", { id: "tip", role: "status", hidden: "" });
  document.body.append(tip);
  const NEAR = 28; // pixels of a drawing
  let lit = null;
  const show = (mark, event) => {
    if (lit) lit.classList.remove("lit");
    lit = mark;
    tip.toggleAttribute("hidden", !mark);
    if (!mark) return;
    mark.classList.add("lit");
    tip.textContent = mark.getAttribute("aria-label");
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(room, event.clientX + 14))}px`;
    tip.style.top = `${event.clientY + 18}px`;
  };
  const inside = (plot, event) => {
    const matrix = plot.getScreenCTM();
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  };
  const place = (mark) => mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
  const near = (plot, event) => {
    const touched = event.target.closest(".mark"); // a label belongs to its mark
    if (touched) return touched;
    const at = inside(plot.querySelector(".marks"), event);
    const found = all(".mark:not([hidden])", plot).map((mark) => {
      const [x, y] = place(mark);
      return [Math.hypot(x - at.x, y - at.y), mark];
    });
    const [least, mark] = found.reduce((a, b) => (b[0] < a[0] ? b : a), [NEAR, null]);
    return least < NEAR ? mark : null;
  };

  // ---- Zoom: a drag selects a range, a double click shows all again, and so do the buttons. The drawing's own
  // pixels are the coordinates: of an axis, data-x and data-y say the kind, and the values at both ends.
  const label = (value) => {
    const found = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e4]].find(([, least]) => Math.abs(value) >= least);
    const factor = found ? { T: 1e12, G: 1e9, M: 1e6, k: 1e3 }[found[0]] : 1;
    return (value / factor).toLocaleString("en", { maximumSignificantDigits: 4 }) + (found ? found[0] : "");
  };
  const steps = (low, high) => {
    const rough = (high - low) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
    const first = Math.ceil(low / step) * step;
    return Array.from({ length: 12 }, (_, n) => first + n * step).filter((value) => value <= high);
  };
  const scale = (text) => {
    const [kind, low, high] = [text.split(" ")[0], ...text.split(" ").slice(1).map(Number)];
    return kind === "log"
      ? { value: (share) => low * (high / low) ** share, share: (v) => Math.log(v / low) / Math.log(high / low) }
      : { value: (share) => low + share * (high - low), share: (v) => (v - low) / (high - low) };
  };
  // The ticks of a group that a view from pixel ``start`` to ``end`` of ``length`` shows. Fixed ticks only move.
  const axis = (group, kept, { value, share }, [start, end, length], up, fixed) => {
    const pixel = (v) => (up ? 1 - share(v) : share(v)) * length;
    const at = (p) => value(up ? 1 - p / length : p / length);
    const drawn = [...kept.children].map((tick) => [tick, place(tick)[up ? 1 : 0]]);
    const round = () => {
      const [like] = drawn.find(([tick]) => tick.querySelector("text"));
      return steps(...[at(start), at(end)].sort((a, b) => a - b)).map((v) => {
        const tick = like.cloneNode(true);
        tick.querySelector("text").textContent = label(v);
        return [tick, pixel(v)];
      });
    };
    const shown = (fixed ? drawn : round()).filter(([, p]) => p >= start - 0.5 && p <= end + 0.5);
    for (const [tick, p] of shown) {
      const moved = ((p - start) / (end - start)) * length;
      tick.setAttribute("transform", up ? `translate(0,${moved})` : `translate(${moved},0)`);
    }
    group.replaceChildren(...shown.map(([tick]) => tick));
  };
  const zooming = (svg) => {
    const [plot, lines, across, up] = [".plot", ".lines", ".across", ".up"].map((name) => svg.querySelector(name));
    const [width, height] = [plot.width.baseVal.value, plot.height.baseVal.value];
    const marks = all(".mark", plot).map((mark) => [mark, ...place(mark)]);
    const [keptAcross, keptUp] = [across, up].map((group) => group.cloneNode(true));
    let view = [0, 0, width, height];
    const look = (left, top, right, bottom) => {
      view = [Math.max(0, left), Math.max(0, top), Math.min(width, right), Math.min(height, bottom)];
      const [x0, y0, x1, y1] = view;
      const [kx, ky] = [width / (x1 - x0), height / (y1 - y0)];
      lines.setAttribute("transform", `matrix(${kx},0,0,${ky},${-x0 * kx},${-y0 * ky})`);
      for (const [mark, x, y] of marks)
        mark.setAttribute("transform", `translate(${(x - x0) * kx},${(y - y0) * ky})`);
      const whole = kx === 1 && ky === 1;
      plot.setAttribute("overflow", whole ? "visible" : "hidden");
      const fixed = whole || svg.hasAttribute("data-fixed");
      axis(across, keptAcross.cloneNode(true), scale(svg.dataset.x), [x0, x1, width], false, fixed);
      axis(up, keptUp.cloneNode(true), scale(svg.dataset.y), [y0, y1, height], true, whole);
    };
    const closer = (factor) => {
      const [x, y] = [(view[0] + view[2]) / 2, (view[1] + view[3]) / 2];
      const [w, h] = [((view[2] - view[0]) * factor) / 2, ((view[3] - view[1]) * factor) / 2];
      look(x - w, y - h, x + w, y + h);
    };
    let from = null;
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    box.setAttribute("class", "box");
    const here = (event) => inside(plot.querySelector(".marks"), event);
    const corners = ({ x, y }) => ({
      x: Math.min(from.x, x),
      y: Math.min(from.y, y),
      width: Math.abs(from.x - x),
      height: Math.abs(from.y - y),
    });
    svg.addEventListener("pointerdown", (event) => {
      from = here(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from) return;
      const size = corners(here(event));
      for (const [name, value] of Object.entries(size)) box.setAttribute(name, value);
      if (size.width > 4) plot.append(box);
    });
    svg.addEventListener("pointerup", (event) => {
      const size = from && corners(here(event));
      from = null;
      box.remove();
      if (!size || size.width < 8) return; // a click
      const [kx, ky] = [(view[2] - view[0]) / width, (view[3] - view[1]) / height];
      const [left, right] = [view[0] + size.x * kx, view[0] + (size.x + size.width) * kx];
      const flat = size.height < 8; // along the axis: all of the height
      const [top, bottom] = [size.y, size.y + size.height].map((y) => view[1] + y * ky);
      look(left, flat ? view[1] : top, right, flat ? view[3] : bottom);
    });
    svg.addEventListener("pointercancel", () => ((from = null), box.remove()));
    const reset = () => look(0, 0, width, height);
    svg.addEventListener("dblclick", reset);
    const tools = make("span", { class: "tools" });
    for (const [sign, name, act] of [
      ["+", "Zoom in", () => closer(0.6)],
      ["-", "Zoom out", () => closer(1 / 0.6)],
      ["all", "Show all", reset],
    ]) {
      const button = make("button", { type: "button", title: name, "aria-label": name }, sign);
      button.addEventListener("click", act);
      tools.append(button);
    }
    svg.closest("figure").querySelector("figcaption").append(tools);
  };
  for (const svg of all("figure > svg")) {
    for (const title of all(".mark > title", svg)) {
      title.parentNode.setAttribute("aria-label", title.textContent);
      title.remove(); // the browser's own tip would cover ours
    }
    svg.addEventListener("pointermove", (event) => show(near(svg, event), event));
    svg.addEventListener("pointerleave", () => show(null));
    if (svg.dataset.x) zooming(svg);
  }
})();
