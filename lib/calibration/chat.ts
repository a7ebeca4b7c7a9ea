import { setImmediate } from 'node:timers/promises';
import { Template } from '@huggingface/jinja';
import { BlockprunerError, messageOf, option } from '../errors.js';
import type { TextPiece } from '../runtime/addon.js';
import type { Model } from '../runtime/model.js';

export interface Message {
    role: 'system' | 'user' | 'assistant';
    content: string;
}

export interface Conversation {
    messages: Message[];
    /** the file and the record in it, for messages */
    where: string;
}

/** What data sets call the roles. The later names are ShareGPT's. */
const roles = new Map<unknown, Message['role']>([
    ['system', 'system'],
    ['user', 'user'],
    ['assistant', 'assistant'],
    ['human', 'user'],
    ['gpt', 'assistant']
]);

/**
 * Reads a conversation: a list of messages, each `{role, content}` or, as in ShareGPT, `{from, value}`. What else a
 * message has is passed over.
 * @param where the file and the record, for messages
 * @throws BlockprunerError that names the message which is wrong
 */
export function readConversation(list: readonly unknown[], where: string): Conversation {
    if (list.length === 0) {
        throw new BlockprunerError('INPUT', `${where}: its conversation has no messages`);
    }
    const messages = list.map((item, index) => {
        const wrong = (why: string) => new BlockprunerError('INPUT', `${where}, message ${index + 1}: ${why}`);
        const { role, from, content, value } = (item ?? {}) as Record<string, unknown>;
        const [name, text] = role === undefined ? [from, value] : [role, content];
        const known = roles.get(name);
        if (name === undefined) {
            throw wrong('it has neither role and content nor from and value');
        }
        if (known === undefined) {
            throw wrong(`its role is ${JSON.stringify(name)}, and must be one of ${[...roles.keys()].join(', ')}`);
        }
        if (typeof text !== 'string') {
            throw wrong(`it has no text in '${role === undefined ? 'value' : 'content'}'`);
        }
        if (text.trim() === '') {
            throw wrong('it is empty');
        }
        return { role: known, content: text };
    });
    return { messages, where };
}

/**
 * Writes conversations as the model knows them, by its own chat template, each as llama.cpp gives it to the model: with
 * BOS in front where the model wants one and the template hasn't written it, and nothing between one and the next. The
 * control tokens that the template writes are tokens; the name of one that stands in a message is only text.
 * @throws BlockprunerError if the model has no chat template that can be used, or the template refuses a conversation
 */
export async function applyTemplate(
    model: Model,
    conversations: readonly Conversation[],
    signal?: AbortSignal
): Promise<TextPiece[]> {
    const template = templateOf(model, conversations[0]!.where);
    const { bos, eos, control } = model.specialTokens();
    const escape = escapeFor(control);
    const pieces: TextPiece[] = [];
    for (const [index, { messages, where }] of conversations.entries()) {
        if (index % 256 === 0) {
            await setImmediate(); // so that Ctrl-C is heard
            signal?.throwIfAborted();
        }
        let text: string;
        try {
            text = template.render({
                messages: messages.map(({ role, content }) => ({ role, content: escape(content) })),
                add_generation_prompt: false,
                ...constantsOf(bos, eos)
            });
        } catch (error) {
            throw new BlockprunerError(
                'INPUT',
                `${where}: the chat template of ${model.path} refuses it (${firstLine(error)})`,
                { cause: error }
            );
        }
        const writesBos = beginsWith(bos, text);
        text.split(MARK).forEach((part, i) => {
            // Of what is split, every second part is the number of a name that was escaped.
            const isEscaped = i % 2 === 1;
            pieces.push({
                text: isEscaped ? nameOf(control, part) : part,
                addBos: i === 0 && !writesBos,
                parseControl: !isEscaped
            });
        });
    }
    return pieces;
}

/**
 * What a model's chat template writes before the user's first message; undefined where the model has no template, or
 * one that can't be used.
 */
export function openingOf(model: Model): TextPiece | undefined {
    const { bos, eos } = model.specialTokens();
    let text: string;
    try {
        text = templateOf(model, model.path).render({
            messages: [{ role: 'user', content: ESCAPE }],
            add_generation_prompt: false,
            ...constantsOf(bos, eos)
        });
    } catch {
        return undefined;
    }
    const end = text.indexOf(ESCAPE);
    return end <= 0 ? undefined : { text: text.slice(0, end), addBos: !beginsWith(bos, text), parseControl: true };
}

/** Whether a template has written BOS, as far as there is one. */
function beginsWith(bos: string, text: string): boolean {
    return bos !== '' && text.startsWith(bos);
}

/** What templates read beside the messages. */
function constantsOf(bos: string, eos: string) {
    return { bos_token: bos, eos_token: eos, tools: null, documents: null, fixed_date: fixedDate };
}

const firstLine = (error: unknown) => messageOf(error).split('\n')[0];

function templateOf(model: Model, where: string): Template {
    const source = model.gguf.metadata['tokenizer.chat_template'];
    const instead = `name a field with a text by ${option('field')}, such as messages.0.content`;
    if (typeof source !== 'string' || source.trim() === '') {
        throw new BlockprunerError(
            'INPUT',
            `${where}: it is a conversation, and ${model.path} has no chat template to write it by; ${instead}`
        );
    }
    try {
        // The line takes the place of Jinja's own function. Its end is no text, as after any statement.
        return new Template(`{% set strftime_now = fixed_date %}\n${source}`);
    } catch (error) {
        throw new BlockprunerError(
            'INPUT',
            `${where}: the chat template of ${model.path} can't be read (${firstLine(error)}); ${instead}`,
            { cause: error }
        );
    }
}

/**
 * Stands before and behind the number of a control token, in the place of its name. Unicode has this character for
 * such purposes and for no text. One in a text is escaped, too.
 */
const ESCAPE = '\ufdd0';
const MARK = /\ufdd0(\d+)\ufdd0/;

/** Replaces the names of control tokens in a message by numbers, so that they survive the template and no parser. */
function escapeFor(control: readonly string[]): (text: string) => string {
    const numbers = new Map([...control, ESCAPE].map((name, index) => [name, index]));
    const longestFirst = [...numbers.keys()].filter((name) => name !== '').sort((a, b) => b.length - a.length);
    const pattern = new RegExp(longestFirst.map((name) => name.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('|'), 'g');
    return (text) => text.replace(pattern, (name) => `${ESCAPE}${numbers.get(name)}${ESCAPE}`);
}

function nameOf(control: readonly string[], number: string): string {
    return control[Number(number)] ?? ESCAPE;
}

/**
 * The date of templates that ask for today's, by the codes of strftime: 26 July 2024, which is also what Llama's
 * templates write where they can't ask. Otherwise each day would have another calibration, and no search could be gone
 * on with on the next.
 */
function fixedDate(format: string): string {
    const parts: Record<string, string> = {
        ...{ Y: '2024', y: '24', m: '07', B: 'July', b: 'Jul', d: '26', A: 'Friday', a: 'Fri' },
        ...{ H: '00', I: '12', M: '00', S: '00', p: 'AM' }
    };
    return format.replace(/%([a-zA-Z])/g, (code, letter: string) => parts[letter] ?? code);
}
