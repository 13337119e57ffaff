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
  const UNITS = { kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40, ms: 1e-3, us: 1e-6, min: 60, h: 3600, k: 1024 };
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
    for (const each of all("[data-model], [data-quant]")) {
      const hide = off.model.has(each.dataset.model) || off.quant.has(each.dataset.quant);
      each.toggleAttribute("hidden", hide);
    }
  };
  const chips = (kind, title) => {
    const names = [...new Set(all(`[data-${kind}]`).map((each) => each.dataset[kind]))];
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
    if (event.target.classList.contains("mark")) return event.target;
    const at = inside(plot.querySelector(".marks"), event);
    const found = all(".mark:not([hidden])", plot).map((mark) => {
      const [x, y] = place(mark);
      return [Math.hypot(x - at.x, y - at.y), mark];
    });
    const [least, mark] = found.reduce((a, b) => (b[0] < a[0] ? b : a), [NEAR, null]);
    return least < NEAR ? mark : null;
  };

  // ---- Zoom: a drag selects a range, a double click shows all again, and so do the buttons.
  const SVG = "http://www.w3.org/2000/svg";
  const steps = (low, high) => {
    const power = 10 ** Math.floor(Math.log10((high - low) / 4));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= (high - low) / 4);
    return Array.from({ length: 12 }, (_, n) => Math.ceil(low / step) * step + n * step).filter((v) => v <= high);
  };
  const FORMAT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
  const zooming = (svg) => {
    const plot = svg.querySelector(".plot");
    const [width, height] = [plot.width.baseVal.value, plot.height.baseVal.value];
    const marks = all(".mark", plot).map((mark) => [mark, ...place(mark)]);
    const kept = { across: svg.querySelector(".across").cloneNode(true), up: svg.querySelector(".up").cloneNode(true) };
    let view = [0, 0, width, height];
    const axis = (name, scale, start, end, length, flip) => {
      const [kind, low, high] = [scale.split(" ")[0], ...scale.split(" ").slice(1).map(Number)];
      const value = (at) => (kind === "log" ? low * (high / low) ** at : low + at * (high - low));
      const at = (v) => (kind === "log" ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
      const fixed = name === "across" && svg.hasAttribute("data-fixed");
      const group = svg.querySelector(`.${name}`);
      const move = (tick, pixel) => tick.setAttribute("transform", flip ? `translate(0,${pixel})` : `translate(${pixel},0)`);
      const scaled = (pixel) => ((pixel - start) / (end - start)) * length;
      const ticks = [...kept[name].children].map((tick) => tick.cloneNode(true));
      const made = fixed
        ? ticks.map((tick) => [tick, Number(tick.getAttribute("transform").match(/-?[\d.]+/)[0])])
        : steps(...[value(flip ? 1 - end / length : start / length), value(flip ? 1 - start / length : end / length)])
            .map((v) => {
              const tick = (ticks.find((each) => each.querySelector("text")) || ticks[0]).cloneNode(true);
              tick.querySelector("text").textContent = FORMAT.format(v);
              return [tick, (flip ? 1 - at(v) : at(v)) * length];
            });
      group.replaceChildren(...made.filter(([, p]) => p >= start - 0.5 && p <= end + 0.5).map(([tick, p]) => (move(tick, scaled(p)), tick)));
    };
    const draw = () => {
      const [x0, y0, x1, y1] = view;
      const [kx, ky] = [width / (x1 - x0), height / (y1 - y0)];
      const whole = kx === 1 && ky === 1;
      plot.setAttribute("overflow", whole ? "visible" : "hidden");
      svg.querySelector(".lines").setAttribute("transform", `matrix(${kx},0,0,${ky},${-x0 * kx},${-y0 * ky})`);
      marks.forEach(([mark, x, y]) => mark.setAttribute("transform", `translate(${(x - x0) * kx},${(y - y0) * ky})`));
      for (const name of ["across", "up"]) svg.querySelector(`.${name}`).replaceChildren(...kept[name].cloneNode(true).children);
      if (!whole) {
        axis("across", svg.dataset.x, x0, x1, width, false);
        axis("up", svg.dataset.y, y0, y1, height, true);
      }
    };
    const look = (x0, y0, x1, y1) => {
      view = [Math.max(0, x0), Math.max(0, y0), Math.min(width, x1), Math.min(height, y1)];
      draw();
    };
    const closer = (factor) => {
      const [x, y] = [(view[0] + view[2]) / 2, (view[1] + view[3]) / 2];
      const [w, h] = [((view[2] - view[0]) * factor) / 2, ((view[3] - view[1]) * factor) / 2];
      look(x - w, y - h, x + w, y + h);
    };
    const actual = (at) => [view[0] + (at.x / width) * (view[2] - view[0]), view[1] + (at.y / height) * (view[3] - view[1])];
    let from = null;
    const box = document.createElementNS(SVG, "rect");
    box.setAttribute("class", "box");
    const corners = (to) => [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(from.x - to.x), Math.abs(from.y - to.y)];
    svg.addEventListener("pointerdown", (event) => {
      from = inside(plot.querySelector(".marks"), event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from) return;
      const [x, y, w, h] = corners(inside(plot.querySelector(".marks"), event));
      for (const [name, value] of Object.entries({ x, y, width: w, height: h })) box.setAttribute(name, value);
      if (w > 4 || h > 4) plot.append(box);
    });
    svg.addEventListener("pointerup", (event) => {
      const [x, y, w, h] = from ? corners(inside(plot.querySelector(".marks"), event)) : [0, 0, 0, 0];
      from = null;
      box.remove();
      if (w < 8) return; // a click
      const [[x0, y0], [x1, y1]] = [actual({ x, y }), actual({ x: x + w, y: y + h })];
      look(x0, h < 8 ? view[1] : y0, x1, h < 8 ? view[3] : y1);
    });
    svg.addEventListener("pointercancel", () => ((from = null), box.remove()));
    svg.addEventListener("dblclick", () => look(0, 0, width, height));
    const tools = make("span", { class: "tools" });
    for (const [sign, name, act] of [
      ["+", "Zoom in", () => closer(0.6)],
      ["-", "Zoom out", () => closer(1 / 0.6)],
      ["all", "Show all", () => look(0, 0, width, height)],
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
