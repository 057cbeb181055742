// A pasted picture goes back as the trigger `pasted`, in base64: Ctrl+V anywhere on the page, or the button.
// data: {most}, bytes
export default function ({ parentElement, data, setTriggerValue }) {
  const button = parentElement.querySelector("button");
  const note = parentElement.querySelector("p");
  const say = (text) => { note.textContent = text; };

  function take(file) {
    if (file.size > data.most) {
      say(`This picture has ${Math.ceil(file.size / 2 ** 20)} MB; ${data.most / 2 ** 20} MB is the limit.`);
      return;
    }
    const reader = new FileReader();
    reader.onload = () => {
      say("");
      setTriggerValue("pasted", reader.result.split(",")[1]);
    };
    reader.readAsDataURL(file);
  }

  function onPaste(event) {
    const item = [...(event.clipboardData?.items ?? [])].find((each) => each.type.startsWith("image/"));
    if (!item) return; // text goes where it was pasted
    event.preventDefault();
    take(item.getAsFile());
  }

  button.onclick = async () => {
    try {
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((each) => each.startsWith("image/"));
        if (type) return take(await item.getType(type));
      }
      say("There is no picture to paste: copy one first.");
    } catch {
      say("The browser does not let this button paste; press Ctrl+V (⌘V) instead.");
    }
  };
  document.addEventListener("paste", onPaste);
  return () => document.removeEventListener("paste", onPaste);
}
