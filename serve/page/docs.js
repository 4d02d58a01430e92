// Renders openapi.json: every route with its parameters and responses. It uses no library, so it works offline.

const place = document.getElementById("routes");
document.getElementById("example").textContent = `curl -F files=@image.png ${new URL("predict", location.href)}`;

function element(name, text, className = "") {
  const created = document.createElement(name);
  created.textContent = text;
  created.className = className;
  return created;
}

function shapeOf(schema, all, depth = 0) {
  if (!schema || depth > 4 || schema.$ref?.endsWith("/ErrorBody")) return ""; // the page describes errors at its top
  if (schema.$ref) return shapeOf(all[schema.$ref.split("/").pop()], all, depth);
  if (schema.anyOf) return schema.anyOf.map((each) => shapeOf(each, all, depth)).join(" or ");
  if (schema.type === "array") return `[${shapeOf(schema.items, all, depth + 1)}, …]`;
  if (schema.properties) {
    const fields = Object.entries(schema.properties).map(([name, each]) => `"${name}": ${shapeOf(each, all, depth + 1)}`);
    return `{${fields.join(", ")}}`;
  }
  if (schema.additionalProperties) return `{name: ${shapeOf(schema.additionalProperties, all, depth + 1)}, …}`;
  return schema.format === "binary" ? "file" : [schema.type ?? "any"].flat().join(" or ");
}

function rowsOf(operation, all) {
  const rows = (operation.parameters ?? []).map((each) => [each.name, `${each.in} parameter${each.description ? `: ${each.description}` : ""}`]);
  for (const [type, content] of Object.entries(operation.requestBody?.content ?? {})) {
    rows.push(["body", `${type}: ${shapeOf(content.schema, all)}`]);
  }
  for (const [status, response] of Object.entries(operation.responses ?? {})) {
    const shape = shapeOf(response.content?.["application/json"]?.schema, all);
    rows.push([status, response.description + (shape && shape !== "any" ? `: ${shape}` : "")]);
  }
  return rows;
}

function routeOf(method, address, operation, all) {
  const route = element("article", "", "route");
  const title = element("h3", "");
  title.append(element("code", `${method.toUpperCase()} ${address}`), operation.summary ?? "");
  const table = element("table", "");
  for (const [name, text] of rowsOf(operation, all)) {
    const row = element("tr", "");
    const head = element("th", name);
    head.scope = "row";
    row.append(head, element("td", text));
    table.append(row);
  }
  route.append(title, table);
  return route;
}

try {
  const description = await (await fetch("openapi.json")).json();
  const groups = new Map();
  for (const [address, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const group = operation.tags?.[0] ?? "Other";
      if (!groups.has(group)) groups.set(group, [element("h2", group, "group")]);
      groups.get(group).push(routeOf(method, address, operation, description.components?.schemas ?? {}));
    }
  }
  place.replaceChildren(...[...groups.values()].flat());
} catch {
  place.replaceChildren(element("p", "openapi.json cannot be loaded. Reload this page when the server is running.", "notice"));
}
