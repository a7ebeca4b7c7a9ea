/** See redis.mjs. */
export declare const hasRedis: boolean;
export declare function startRedis(...args: string[]): Promise<{
    url: string;
    port: number;
    restart: (after?: number) => Promise<void>;
    stop: () => Promise<void>;
}>;
