// The npm clients against the server at $TFOAI_URL: one JSON line per check, { name, error? }. The demo model is tiny, so the checks
// are about structure: that a call has the right name, that an object fits its schema, that a stream adds up to its whole.
import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = `${process.env.TFOAI_URL}/v1`;
const MODEL = "tfoai-demo";
const QUESTION = "What is tfoai?";
const WEATHER = "What is the weather in Paris?";
const ANSWER = "tfoai is a server";
const messages = [{ role: "user", content: QUESTION }];
const City = z.object({ name: z.enum(["Paris", "Rome"]), visits: z.number().int().min(0).max(9) });

const client = new OpenAI({ baseURL, apiKey: "none needed", maxRetries: 0 });
const provider = createOpenAICompatible({ name: "tfoai", baseURL, supportsStructuredOutputs: true, includeUsage: true });
const sdk = { model: provider(MODEL), maxRetries: 0 };

const weather = {
    name: "get_weather",
    description: "Get the weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const tools = {
    get_weather: tool({
        description: weather.description,
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => `sunny in ${city}`,
    }),
};

const checks = {
    "openai: chat": async () => {
        const answer = await client.chat.completions.create({ model: MODEL, messages });
        assert.ok(answer.choices[0].message.content.startsWith(ANSWER));
        assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    },
    "openai: stream": async () => {
        let text = "";
        for await (const chunk of await client.chat.completions.create({ model: MODEL, messages, stream: true })) {
            text += chunk.choices[0].delta.content ?? "";
        }
        assert.ok(text.startsWith(ANSWER));
    },
    "openai: stream helper": async () => {
        const final = await client.chat.completions.stream({ model: MODEL, messages }).finalChatCompletion();
        assert.ok(final.choices[0].message.content.startsWith(ANSWER));
    },
    "openai: parse": async () => {
        const response_format = zodResponseFormat(City, "city");
        const answer = await client.chat.completions.parse({ model: MODEL, messages, response_format });
        City.parse(answer.choices[0].message.parsed);
    },
    "openai: tools": async () => {
        const answer = await client.chat.completions.create({
            model: MODEL,
            messages: [{ role: "user", content: WEATHER }],
            tools: [{ type: "function", function: weather }],
        });
        const call = answer.choices[0].message.tool_calls[0].function;
        assert.equal(call.name, "get_weather");
        assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
    },
    "openai: runTools": async () => {
        const asked = [];
        const run = async ({ city }) => (asked.push(city), `sunny in ${city}`);
        const runner = client.chat.completions.runTools({
            model: MODEL,
            messages: [{ role: "user", content: WEATHER }],
            tools: [{ type: "function", function: { ...weather, function: run, parse: JSON.parse } }],
            stream: true,
        });
        assert.ok((await runner.finalContent()).length > 0);
        assert.deepEqual(asked, ["Paris"]);
    },
    "openai: embeddings": async () => {
        const request = { model: "embedder", input: ["a", "b"] };
        const decoded = await client.embeddings.create(request);
        const numbers = await client.embeddings.create({ ...request, encoding_format: "float" });
        assert.equal(decoded.data.length, 2);
        decoded.data.forEach((one, i) =>
            one.embedding.forEach((x, j) => assert.ok(Math.abs(x - numbers.data[i].embedding[j]) < 1e-6)),
        );
    },
    "openai: errors": async () => {
        await assert.rejects(
            client.chat.completions.create({ model: MODEL, messages, temperature: 3 }),
            (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
        );
        await assert.rejects(client.models.retrieve("nobody"), OpenAI.NotFoundError);
    },
    "ai: generateText": async () => {
        const { text, usage, finishReason } = await generateText({ ...sdk, prompt: QUESTION });
        assert.ok(text.startsWith(ANSWER));
        assert.equal(finishReason, "stop");
        assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
    },
    "ai: streamText": async () => {
        const result = streamText({ ...sdk, prompt: QUESTION });
        let text = "";
        for await (const part of result.textStream) text += part;
        assert.ok(text.startsWith(ANSWER));
        assert.ok((await result.usage).outputTokens > 0);
    },
    "ai: tools": async () => {
        const { toolCalls, toolResults } = await generateText({ ...sdk, prompt: WEATHER, tools });
        assert.equal(toolCalls[0].toolName, "get_weather");
        assert.equal(toolResults[0].output, "sunny in Paris");
    },
    "ai: streamed tools": async () => {
        const result = streamText({ ...sdk, prompt: WEATHER, tools });
        await result.consumeStream();
        assert.equal((await result.toolResults)[0].output, "sunny in Paris");
        assert.equal(await result.finishReason, "tool-calls");
    },
    "ai: a required tool": async () => {
        const { toolCalls } = await generateText({ ...sdk, prompt: QUESTION, tools, toolChoice: "required" });
        assert.equal(toolCalls[0].toolName, "get_weather");
    },
    "ai: objects": async () => {
        const { output } = await generateText({ ...sdk, prompt: QUESTION, output: Output.object({ schema: City }) });
        City.parse(output);
    },
    "ai: streamed objects": async () => {
        const result = streamText({ ...sdk, prompt: QUESTION, output: Output.object({ schema: City }) });
        await result.consumeStream();
        City.parse(await result.output);
    },
    "ai: embedMany": async () => {
        const { embeddings } = await embedMany({ model: provider.embeddingModel("embedder"), values: ["a", "b"], maxRetries: 0 });
        assert.equal(embeddings.length, 2);
        assert.equal(embeddings[0].length, embeddings[1].length);
    },
};

for (const [name, check] of Object.entries(checks)) {
    let error;
    await check().catch((caught) => (error = String(caught?.stack ?? caught)));
    console.log(JSON.stringify({ name, error }));
}
