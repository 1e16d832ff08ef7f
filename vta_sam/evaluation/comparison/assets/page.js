/* The page's behaviour: clips are loaded a script at a time, shown as many as fit beside each other, and played one at
   a time. Markup comes escaped from the program that wrote the page; nothing here makes markup out of data. */
"use strict";
const comparison = (() => {
  const NARROWEST_CELL_PX = 184, GAP_PX = 16, SEEK_S = 0.5;
  const scripts = new Map();  // number of a script ⇒ promise that its clips are there
  const markup = [];  // of each clip, as far as loaded
  let clips = [], perScript = 1, found = [], first = 0, columns = 1, turn = 0, playing = null;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const grid = document.getElementById("grid"), status = document.getElementById("status");
  const words = document.getElementById("words"), select = document.querySelector(".pager select");

  function addClips(script, loaded) {
    loaded.forEach((text, i) => { markup[script * perScript + i] = text; });
  }

  function load(script) {
    if (!scripts.has(script)) {
      scripts.set(script, new Promise((done, failed) => {
        const element = document.createElement("script");
        element.src = `pages/${String(script + 1).padStart(4, "0")}.js`;
        element.onload = done;
        element.onerror = () => { scripts.delete(script); failed(new Error(`${element.src} can't be loaded`)); };
        document.head.append(element);
      }));
    }
    return scripts.get(script);
  }

  function fitting() {
    const style = getComputedStyle(grid);
    if (style.display !== "grid") return 1;
    const names = parseFloat(style.getPropertyValue("--row-name")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
    return Math.max(1, Math.floor((grid.clientWidth - names) / (NARROWEST_CELL_PX + GAP_PX)));
  }

  /* Show the clips from place `from` of those found. Whoever comes last wins: loading takes time. */
  async function show(from) {
    const mine = ++turn;
    columns = fitting();
    first = Math.max(0, Math.min(from, found.length - 1));
    first -= first % columns;
    const shown = found.slice(first, first + columns);
    describe(shown.length);
    try {
      await Promise.all([...new Set(shown.map((i) => Math.floor(i / perScript)))].map(load));
    } catch (error) {
      if (mine === turn) status.textContent = `${error.message}; is the folder complete?`;
      return;
    }
    if (mine !== turn) return;
    const wanted = new Set(shown.map(String)), kept = new Map();
    for (const article of all(".clip", grid)) {
      if (wanted.has(article.dataset.place)) kept.set(article.dataset.place, article);
      else { all("video, audio", article).forEach(release); article.remove(); }
    }
    for (const place of shown) grid.append(kept.get(String(place)) ?? build(place));
    grid.style.setProperty("--columns", Math.max(shown.length, Math.min(columns, 3)));
  }

  function build(place) {
    const template = document.createElement("template");
    template.innerHTML = markup[place];
    const article = template.content.firstElementChild;
    article.dataset.place = place;
    return article;
  }

  function release(player) {
    player.pause();
    if (playing === player) playing = null;
    player.removeAttribute("src");
    player.load();
  }

  function describe(count) {
    const range = count > 1 ? `Clips ${first + 1} to ${first + count}` : `Clip ${first + 1}`;
    const of = found.length === clips.length ? `${clips.length}` : `${found.length} found among ${clips.length}`;
    status.textContent = count ? `${range} of ${of}` : "No clip has these words; an empty search shows all.";
    const pages = Math.ceil(found.length / columns);
    if (select.length !== pages || select.dataset.columns !== String(columns)) {
      select.dataset.columns = columns;
      select.replaceChildren(...Array.from({length: pages}, (_, i) => {
        const last = Math.min((i + 1) * columns, found.length), start = i * columns + 1;
        return new Option(start === last ? `Clip ${start}` : `Clips ${start}–${last}`, i);
      }));
    }
    select.selectedIndex = Math.floor(first / columns);
    select.disabled = pages < 2;
    for (const button of all(".pager button")) {
      button.disabled = Number(button.dataset.step) < 0 ? first === 0 : first + columns >= found.length;
    }
  }

  function search() {
    const asked = words.value.trim().toLowerCase(), parts = asked.split(/\s+/);
    const places = clips.map((_, i) => i);
    const exact = places.filter((i) => clips[i][0].toLowerCase() === asked);
    const others = places.filter((i) => !exact.includes(i)
      && parts.every((part) => `${clips[i][0]} ${clips[i][1]}`.toLowerCase().includes(part)));
    found = asked ? [...exact, ...others] : places;
    select.replaceChildren();
    return show(0);
  }

  /* #clip=ID shows that clip; #column-3 opens that definition. */
  function follow() {
    let hash = location.hash.slice(1);
    try { hash = decodeURIComponent(hash); } catch { /* a lone per cent sign stands for itself */ }
    const target = hash && document.getElementById(hash);
    for (let box = target; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
    if (target) target.scrollIntoView();
    const place = hash.startsWith("clip=") ? clips.findIndex(([id]) => id === hash.slice(5)) : -1;
    if (place < 0) return;
    words.value = "";
    found = clips.map((_, i) => i);
    show(place);
    document.getElementById("clips").scrollIntoView();
  }

  const playerOf = (inside) => inside.closest(".cell").querySelector("video, audio");
  const lengthOf = (cell) => Number(cell.querySelector(".score").getAttribute("aria-valuemax"));

  function toggle(player) {
    if (player.paused) player.play().catch((error) => { if (error.name !== "AbortError") fail(player); });
    else player.pause();
  }

  function seek(player, time) {
    const cell = player.closest(".cell");
    const end = Number.isFinite(player.duration) ? player.duration : lengthOf(cell);
    const wanted = Math.max(0, Math.min(time, end, lengthOf(cell)));
    if (player.readyState > 0) player.currentTime = wanted;
    else {
      player.dataset.wanted = wanted;
      player.addEventListener("loadedmetadata", () => {
        player.currentTime = Number(player.dataset.wanted);
        delete player.dataset.wanted;
      }, {once: true});
      player.preload = "auto";
      player.load();
    }
    draw(player, wanted);
  }

  const timeOf = (player) => Number(player.dataset.wanted ?? player.currentTime);

  function draw(player, time = timeOf(player)) {
    const cell = player.closest(".cell");
    if (!cell) return;
    const length = lengthOf(cell), score = cell.querySelector(".score");
    const heads = [score.querySelector(".head"), ...all(".lane .head", cell.closest(".clip"))];
    for (const head of heads) head.style.left = `${Math.min(100, 100 * time / length)}%`;
    cell.classList.add("begun");
    cell.closest(".clip").querySelector(".timeline")?.classList.add("begun");
    cell.querySelector(".time").textContent = `${time.toFixed(1)} / ${length.toFixed(1)} s`;
    score.setAttribute("aria-valuenow", time.toFixed(2));
    score.setAttribute("aria-valuetext", `${time.toFixed(1)} of ${length.toFixed(1)} seconds`);
  }

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  function animate() {
    if (!playing || playing.paused || still.matches) return;
    draw(playing);
    requestAnimationFrame(animate);
  }

  function fail(player) {
    const cell = player.closest(".cell");
    if (!cell || cell.querySelector(".failed") || !player.hasAttribute("src")) return;
    const sentence = document.createElement("p");
    sentence.className = "failed";
    sentence.setAttribute("role", "alert");
    sentence.textContent = `${player.getAttribute("src")} can't be played by this browser.`;
    cell.querySelector(".controls").after(sentence);
  }

  function onPlay(player) {
    const before = playing;
    if (before && before !== player) {
      const sameClip = before.closest(".clip") === player.closest(".clip");
      before.pause();
      if (sameClip && document.getElementById("keep").checked) seek(player, before.currentTime);
    }
    playing = player;
    animate();
  }

  function mark(player) {
    const button = player.closest(".cell")?.querySelector(".play");
    if (!button) return;
    const running = !player.paused && !player.ended;
    button.setAttribute("aria-label", `${running ? "Pause" : "Play"} ${button.dataset.name}`);
    button.querySelector("use").setAttribute("href", running ? "#icon-pause" : "#icon-play");
  }

  /* From one play button to that of the next system (rows) or clip (across), on to the next page at the edge. */
  async function move(button, rows, across) {
    const article = button.closest(".clip"), cells = all(".cell", article);
    const row = cells.indexOf(button.closest(".cell"));
    if (rows) return nearest(cells, row + rows, rows)?.focus();
    const articles = all(".clip", grid);
    let next = articles[articles.indexOf(article) + across];
    if (!next) {
      const from = first + across * columns;
      if (from < 0 || from >= found.length) return;
      await show(from);
      next = all(".clip", grid).at(across > 0 ? 0 : -1);
    }
    const others = all(".cell", next);
    (nearest(others, row, 1) ?? nearest(others, row, -1))?.focus();
  }

  function nearest(cells, row, step) {
    for (let i = row; i >= 0 && i < cells.length; i += step) {
      const button = cells[i].querySelector(".play");
      if (button) return button;
    }
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const button = event.target.closest(".play"), score = event.target.closest(".score");
    const arrows = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
    if (button && arrows[event.key]) move(button, ...arrows[event.key]);
    else if (score) {
      const player = playerOf(score), now = timeOf(player);
      const times = {ArrowLeft: now - SEEK_S, ArrowDown: now - SEEK_S, ArrowRight: now + SEEK_S,
        ArrowUp: now + SEEK_S, Home: 0, End: lengthOf(score.closest(".cell"))};
      if (event.key === " " || event.key === "Enter") toggle(player);
      else if (event.key in times) seek(player, times[event.key]);
      else return;
    } else return;
    event.preventDefault();
  }

  function onClick(event) {
    const inside = (selector) => event.target.closest(selector);
    if (event.target.controls) return;  // in full screen the browser's own do it
    if (inside(".play") || inside(".stage")) toggle(playerOf(event.target));
    else if (inside(".full")) playerOf(event.target).requestFullscreen?.();
    else if (inside(".score")) {
      const box = inside(".score").getBoundingClientRect(), player = playerOf(event.target);
      seek(player, (event.clientX - box.left) / box.width * lengthOf(player.closest(".cell")));
    }
  }

  function chooseColumns() {
    const boxes = all(".chooser input");
    for (const box of boxes.filter((each) => each.value)) {
      for (const cell of all("[data-group]")) if (cell.dataset.group === box.value) cell.hidden = !box.checked;
    }
    const beside = document.getElementById("beside");
    if (beside) document.getElementById("figures").classList.toggle("no-beside", !beside.checked);
  }

  const THEMES = [["", "automatic"], ["light", "light"], ["dark", "dark"]];
  function dress(theme) {
    const [value, name] = THEMES.find(([known]) => known === theme) ?? THEMES[0];
    const button = document.getElementById("theme");
    document.documentElement.style.colorScheme = value;
    button.textContent = `Colours: ${name}`;
    button.setAttribute("aria-label", button.textContent);
    button.dataset.theme = value;
  }
  const stored = (value) => {  // storage may be closed to pages from disk
    try {
      if (value === undefined) return localStorage.getItem("comparison-theme") ?? "";
      localStorage.setItem("comparison-theme", value);
    } catch { /* then the choice lasts as long as the page */ }
    return "";
  };

  function start(clipsPerScript, ids) {
    perScript = clipsPerScript;
    clips = ids;
    grid.style.setProperty("--grid-rows", Number(grid.dataset.rows) + 1);
    dress(stored());
    document.getElementById("theme").addEventListener("click", (event) => {
      const next = THEMES[(THEMES.findIndex(([value]) => value === event.target.dataset.theme) + 1) % THEMES.length][0];
      dress(next);
      stored(next);
    });
    all(".chooser input").forEach((box) => box.addEventListener("change", chooseColumns));
    chooseColumns();  // browsers keep what was ticked over a reload
    document.getElementById("search").addEventListener("submit", (event) => event.preventDefault());
    words.addEventListener("input", search);
    select.addEventListener("change", () => show(Number(select.value) * columns));
    for (const button of all(".pager button")) {
      button.addEventListener("click", () => show(first + Number(button.dataset.step) * columns));
    }
    grid.addEventListener("click", onClick);
    grid.addEventListener("keydown", onKey);
    const on = (name, act) => grid.addEventListener(name, (event) => {  // these events don't bubble
      if (event.target.matches("video, audio")) act(event.target);
    }, true);
    on("play", (player) => { onPlay(player); mark(player); });
    on("pause", (player) => { draw(player); mark(player); });
    on("ended", mark);
    on("timeupdate", (player) => draw(player));
    on("error", fail);
    document.addEventListener("fullscreenchange", () => {
      all("video", grid).forEach((video) => { video.controls = video === document.fullscreenElement; });
    });
    new ResizeObserver(() => { if (fitting() !== columns) show(first); }).observe(grid);
    window.addEventListener("hashchange", follow);
    search().then(follow);
  }

  return {start, addClips};
})();
