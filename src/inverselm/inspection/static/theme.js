// Before the first paint: the theme that was chosen here, else the system's.
"use strict";
(() => {
  const KEY = "inverselm-theme";
  let stored = "auto";
  try {
    stored = localStorage.getItem(KEY) || "auto";
  } catch { /* no storage: the system's theme */ }
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  apply(stored);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const order = ["auto", "light", "dark"];
    const glyphs = { auto: "◐", light: "☀", dark: "☾" };
    let theme = order.includes(stored) ? stored : "auto";
    const show = () => {
      button.textContent = glyphs[theme];
      button.setAttribute("aria-label", `Theme: ${theme}`);
      const word = document.createElement("span");
      word.className = "wide";
      word.textContent = ` ${theme[0].toUpperCase()}${theme.slice(1)}`;
      button.append(word);
    };
    show();
    button.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      apply(theme);
      show();
      try {
        localStorage.setItem(KEY, theme);
      } catch { /* this page only */ }
    });
  });
})();
