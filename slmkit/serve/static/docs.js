'use strict';

// Shows /openapi.json: each address, what it is for, and the fields of its request. Needs nothing from the internet.

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function typeOf(field) {
  if (field.enum) return field.enum.map((value) => JSON.stringify(value)).join(' | ');
  if (field.const !== undefined) return JSON.stringify(field.const);
  if (field.anyOf) return field.anyOf.map(typeOf).filter((name) => name !== 'null').join(' | ');
  return field.type ?? 'object';
}

function rangeOf(field) {
  const bounds = {minimum: 'from', exclusiveMinimum: 'above', maximum: 'to'};
  const found = [field, ...(field.anyOf ?? [])];
  return Object.entries(bounds).map(([name, word]) => {
    const values = found.map((part) => part[name]).filter((value) => value !== undefined);
    return values.length ? ` ${word} ${values[0]}` : '';
  }).join('');
}

function showFields(schema, parent) {
  const list = element('dl', '', parent);
  const isRequired = ([name]) => schema.required?.includes(name) ?? false;
  const fields = Object.entries(schema.properties).sort((a, b) => isRequired(b) - isRequired(a));
  for (const [name, field] of fields) {
    const line = element('dt', name, list);
    const preset = field.default === undefined || field.default === null ? '' : `, default ${JSON.stringify(field.default)}`;
    element('span', `  ${typeOf(field)}${rangeOf(field)}${isRequired([name]) ? ', required' : preset}`, line);
    element('dd', field.description ?? '', list);
  }
}

async function start() {
  const api = await (await fetch('/openapi.json')).json();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, call] of Object.entries(methods)) {
      if (method === 'head') continue;
      const section = element('section', '', document.getElementById('addresses'));
      element('h2', `${method.toUpperCase()} ${path}`, section);
      element('p', call.description ?? '', section);
      const reference = call.requestBody?.content['application/json']?.schema.$ref;
      if (reference) showFields(api.components.schemas[reference.split('/').pop()], section);
    }
  }
}

start().catch((error) => {
  document.getElementById('error').textContent = `The server cannot be reached: ${error.message}`;
  document.getElementById('error').hidden = false;
});
