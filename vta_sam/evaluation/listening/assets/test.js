"use strict";
// One screen at a time. Orders and stimuli come ready-made in data.js; what is kept is only what the rater did.
(() => {
  const test = window.TEST;
  const screen = document.getElementById("screen");
  const status = document.getElementById("status");
  const BREAK_EVERY = 30;
  const QUESTIONS = {
    quality: {
      ask: "How good is the sound?",
      help: "Judge the sound itself: is it natural, clear, and what such a scene would sound like?",
      labels: ["Bad", "Poor", "Fair", "Good", "Excellent"],
    },
    alignment: {
      ask: "Does the sound happen when you see it?",
      help: "Judge only the timing: do sounds begin and end with what is seen?",
      labels: ["Not at all", "Rarely", "Partly", "Mostly", "Exactly"],
    },
  };
  let state = null;
  let kept = true;

  const slot = (rater) => `listening-test:${test.test}:${rater}`;
  function load(rater) {
    try {
      const found = JSON.parse(localStorage.getItem(slot(rater)));
      if (found && found.test === test.test && Array.isArray(found.answers)) return found;
    } catch (error) { kept = false; }
    return null;
  }
  function save() {
    try { localStorage.setItem(slot(state.rater), JSON.stringify(state)); kept = true; } catch (error) { kept = false; }
    status.textContent = kept ? "" : "This browser keeps nothing between visits: don't close or reload this page.";
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  function show(title, ...children) {
    const heading = element("h1", { tabindex: "-1" }, title);
    screen.replaceChildren(heading, ...children);
    heading.focus({ preventScroll: true });
    window.scrollTo(0, 0);
    const share = state ? Math.round(100 * done() / total()) : 0;
    document.getElementById("bar").style.width = `${share}%`;
    document.getElementById("progress").setAttribute("aria-valuenow", share);
  }
  const items = () => test.raters[state.rater];
  const total = () => items().length + test.headphones.length + 1;
  const done = () => state.answers.length + state.headphones.length + (state.practised ? 1 : 0);

  // ------------------------------------------------------------ screens, in the order of next()
  function next() {
    save();
    if (!state.agreed) return welcome();
    if (state.headphones.length < test.headphones.length) return headphones();
    if (!state.practised) return practice();
    if (state.answers.length < items().length) {
      const rest = state.answers.length && state.answers.length % BREAK_EVERY === 0;
      if (rest && state.rested !== state.answers.length) return pause();
      return question();
    }
    return finish();
  }

  function enter(problem) {
    const numbers = Object.keys(test.raters);
    const field = element("input", {
      type: "text", id: "rater", inputmode: "numeric", autocomplete: "off", "aria-describedby": "rater-help",
    });
    const form = element("form", {
      onsubmit: (event) => { event.preventDefault(); start(field.value.trim()); },
    }, element("p", {}, element("label", { for: "rater" }, "Your rater number: "), field),
    element("p", { class: "hint", id: "rater-help" }, `You were given a number from 1 to ${numbers.length}.`),
    element("p", { class: "warn", role: "alert" }, problem || ""),
    element("div", { class: "row" }, element("button", { type: "submit" }, "Continue")));
    show("Welcome", form);
  }
  function start(rater) {
    if (!Object.hasOwn(test.raters, rater)) return enter(`There is no rater number “${rater}” in this test.`);
    state = load(rater) || {
      format: test.format, test: test.test, rater, started: new Date().toISOString(), agreed: false, headphones: [],
      practised: false, answers: [], rested: 0,
    };
    next();
  }

  function welcome() {
    show("Before you begin",
      element("p", {}, `You will see ${items().length} short clips, one at a time, and answer one question about each: ` +
        "how good the sound is, or how well it fits the picture in time. There are no right answers."),
      element("p", {}, "Please use headphones, in a quiet place, and leave the volume as it is once you have set it. " +
        "You can stop at any time and go on later in this browser."),
      element("p", {}, "Stored are your ratings, how often and how long you listened, whether the headphones check was " +
        "passed, and the kind of browser; no name, no address. The file stays with you until you send it."),
      element("p", { class: "hint" }, "Keys: ", element("kbd", {}, "Space"), " plays, ", element("kbd", {}, "1"), "–",
        element("kbd", {}, "5"), " answer, ", element("kbd", {}, "Enter"), " goes on."),
      element("div", { class: "row" }, element("button", { onclick: () => { state.agreed = true; next(); } },
        "I agree, begin")));
  }

  function headphones() {
    const number = state.headphones.length;
    const trial = test.headphones[number];
    const sound = element("audio", { src: trial.file, controls: true, "aria-label": "Three tones" });
    const choose = scale("Which of the three tones is the quietest?", ["First", "Second", "Third"], (value) => {
      state.headphones.push(Number(value - 1 === trial.answer));
      next();
    }, sound);
    show(`Headphones check ${number + 1} of ${test.headphones.length}`,
      element("p", {}, "Put on your headphones, set a comfortable volume, and play the three tones."), sound, choose);
  }

  function practice() {
    const player = playerFor("practice");
    show("A clip to practise on",
      element("p", {}, "Play it, then answer. This answer does not count."), player,
      scale(QUESTIONS.quality.ask, QUESTIONS.quality.labels, () => { state.practised = true; next(); }, player));
  }

  function pause() {
    show("Time for a short break", element("p", {}, `${state.answers.length} of ${items().length} clips are done. ` +
      "Rest your ears for a minute if you like; what you have answered is kept."),
    element("div", { class: "row" }, element("button", {
      onclick: () => { state.rested = state.answers.length; next(); },
    }, "Go on")));
  }

  function question() {
    const [token, kind] = items()[state.answers.length];
    const words = QUESTIONS[kind];
    const player = playerFor(token);
    const began = performance.now();
    let plays = 0;
    player.addEventListener("ended", () => { plays += 1; });
    show(`Clip ${state.answers.length + 1} of ${items().length}`, player,
      element("p", { class: "hint" }, words.help),
      scale(words.ask, words.labels, (value) => {
        state.answers.push({
          item: token, question: kind, value, plays, seconds: Math.round((performance.now() - began) / 100) / 10,
        });
        next();
      }, player));
  }

  function finish() {
    state.finished = state.finished || new Date().toISOString();
    save();
    const text = exported();
    const name = `ratings-${test.test}-${state.rater}.json`;
    const link = element("a", {
      class: "button", id: "download", download: name, href: URL.createObjectURL(new Blob([text], { type: "application/json" })),
    }, "Save the file with your ratings");
    const field = element("textarea", { readonly: true, "aria-label": "Your ratings as text", id: "export" });
    field.value = text;
    show("Thank you", element("p", {}, "All clips are rated. Please save the file and send it to whoever asked you."),
      element("div", { class: "row" }, link, element("button", {
        class: "second",
        onclick: () => { field.select(); (navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject())
          .then(() => { status.textContent = "Copied."; }, () => { status.textContent = "Select the text and copy it."; }); },
      }, "Copy it as text")), element("p", { class: "hint" }, "If the file can't be saved, send this text:"), field);
  }

  function exported() {
    const { format, rater, started, finished, headphones: heard, answers } = state;
    const agent = /Mobile|Android|iPhone|iPad/.test(navigator.userAgent) ? "phone or tablet" : "computer";
    const lines = answers.map((a) => `${a.item} ${a.question} ${a.value} ${a.plays} ${a.seconds.toFixed(1)}`);
    const checksum = sum([test.test, rater, heard.join(""), ...lines].join("\n"));
    return JSON.stringify({ format, test: test.test, rater, started, finished, agent, headphones: heard, answers, checksum });
  }
  function sum(text) { // FNV-1a, 32 bits, of UTF-8: tells a broken file, not a forged one
    let hash = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
    return hash.toString(16).padStart(8, "0");
  }

  // ------------------------------------------------------------ parts of a screen
  function playerFor(token) {
    const file = test.media[token];
    return element(file.endsWith(".wav") ? "audio" : "video", {
      src: file, controls: true, playsinline: true, preload: "auto", "aria-label": "The clip to be judged",
      controlslist: "nodownload noplaybackrate", disablepictureinpicture: true,
    });
  }
  // The choices open when the clip has been heard to its end.
  function scale(ask, labels, answer, player) {
    const go = element("button", { type: "submit", disabled: true }, "Next");
    const wait = element("p", { class: "hint", role: "status" }, "Play it to the end first.");
    const inputs = labels.map((_, i) => element("input", {
      type: "radio", name: "value", value: i + 1, disabled: true, onchange: () => { go.disabled = false; },
    }));
    player.addEventListener("ended", () => {
      inputs.forEach((input) => { input.disabled = false; });
      wait.textContent = "";
    }, { once: true });
    player.addEventListener("error", () => { wait.textContent = "This clip can't be played by this browser; please use another one."; });
    return element("form", {
      onsubmit: (event) => {
        event.preventDefault();
        const chosen = inputs.find((input) => input.checked);
        if (chosen) answer(Number(chosen.value));
      },
    }, element("fieldset", {}, element("legend", {}, ask), element("div", { class: "scale" },
      ...labels.map((label, i) => element("label", {}, inputs[i], element("span", { class: "value", "aria-hidden": "true" },
        labels.length === 5 ? String(i + 1) : ""), element("span", {}, label))))), wait,
    element("div", { class: "row" }, go));
  }

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=text], textarea, button, a") || event.ctrlKey || event.metaKey || event.altKey) return;
    const player = screen.querySelector("video, audio");
    const choice = screen.querySelector(`input[type=radio][value="${event.key}"]`);
    if (/^[1-5]$/.test(event.key) && choice && !choice.disabled) {
      choice.checked = true;
      choice.dispatchEvent(new Event("change"));
      choice.focus();
      event.preventDefault();
    } else if (event.key === "Enter") {
      const go = screen.querySelector("button[type=submit]:not(:disabled)");
      if (go && event.target.type !== "radio") { go.click(); event.preventDefault(); }
    } else if (event.key === " " && player && event.target !== player) {
      if (player.paused) player.play(); else player.pause();
      event.preventDefault();
    }
  });

  const asked = new URLSearchParams(location.search).get("rater");
  if (asked !== null) start(asked); else enter();
})();
